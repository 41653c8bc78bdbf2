//! Status conditions, as the Kubernetes API conventions define them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// A condition to be set: True or False, with a reason in CamelCase and a message that a person can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Type of the condition.
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// Reason in CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Finding {
    /// A condition that holds, or does not, for a reason.
    #[must_use]
    pub fn new(kind: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            holds,
            reason,
            message: message.into(),
        }
    }
}

/// The longest message that Kubernetes accepts in a condition, in bytes.
const MESSAGE_MAX: usize = 1024;

/// The conditions that state these findings. The time of transition of a condition changes only with its status, so
/// that an unchanged finding is an unchanged object.
#[must_use]
pub fn update(old: &[Condition], findings: &[Finding], generation: Option<i64>, now: &Time) -> Vec<Condition> {
    findings
        .iter()
        .map(|finding| {
            let status = if finding.holds { "True" } else { "False" };
            let before = old.iter().find(|c| c.type_ == finding.kind && c.status == status);
            Condition {
                type_: finding.kind.to_owned(),
                status: status.to_owned(),
                reason: finding.reason.to_owned(),
                message: shorten(&finding.message, MESSAGE_MAX),
                observed_generation: generation,
                last_transition_time: before.map_or_else(|| now.clone(), |c| c.last_transition_time.clone()),
            }
        })
        .collect()
}

/// A text of at most `max` bytes, cut at a character and marked where it was cut.
#[must_use]
pub fn shorten(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max.saturating_sub('…'.len_utf8()))
        .rev()
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_time_moves_with_the_status_only() {
        let early = Time("2026-01-01T00:00:00Z".parse().expect("a time"));
        let late = Time("2026-01-02T00:00:00Z".parse().expect("a time"));
        let no = update(&[], &[Finding::new("Ready", false, "NoDisk", "none")], Some(1), &early);
        let still = update(
            &no,
            &[Finding::new("Ready", false, "Other", "none yet")],
            Some(2),
            &late,
        );
        assert_eq!(still[0].last_transition_time, early);
        assert_eq!(still[0].reason, "Other");
        let yes = update(&still, &[Finding::new("Ready", true, "Ready", "")], Some(2), &late);
        assert_eq!(yes[0].last_transition_time, late);
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let cut = shorten(&"é".repeat(2000), 1024);
        assert!(cut.len() <= 1024 && cut.ends_with('…'));
    }
}
