//! What was measured, and the table of it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a figure is to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Goal {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: String,
    /// What it is to be, where there is a goal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// Whether it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

impl Goal {
    /// Whether a value meets it.
    #[must_use]
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most}"),
            Self::AtLeast(least) => write!(f, "≥ {least}"),
        }
    }
}

impl Figure {
    /// A figure without a goal.
    #[must_use]
    pub fn new(what: impl Into<String>, value: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            value,
            unit: unit.to_owned(),
            goal: None,
            met: None,
        }
    }

    /// The same with a goal.
    #[must_use]
    pub fn goal(self, goal: Goal) -> Self {
        Self {
            goal: Some(goal),
            met: Some(goal.is_met(self.value)),
            ..self
        }
    }
}

/// Figures as the rows of a table.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let mut text = "| figure | value | goal | met |\n|---|---|---|---|\n".to_owned();
    for figure in figures {
        let goal = figure.goal.map(|goal| goal.to_string()).unwrap_or_default();
        let met = match figure.met {
            None => "",
            Some(true) => "yes",
            Some(false) => "**no**",
        };
        let (value, unit) = (rounded(figure.value), &figure.unit);
        text.push_str(&format!("| {} | {value} {unit} | {goal} | {met} |\n", figure.what));
    }
    text
}

/// Three digits that tell something, or all of those before the point.
fn rounded(value: f64) -> String {
    let places = match value.abs() {
        0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 4,
    };
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_or_not() {
        let figure = |value| Figure::new("time", value, "ms").goal(Goal::AtMost(2.0));
        assert_eq!(figure(2.0).met, Some(true));
        assert_eq!(figure(2.01).met, Some(false));
        assert_eq!(Figure::new("rate", 0.9, "").goal(Goal::AtLeast(0.9)).met, Some(true));
        assert_eq!(
            table(&[figure(2.01)]).lines().last(),
            Some("| time | 2.01 ms | ≤ 2 | **no** |")
        );
    }
}
