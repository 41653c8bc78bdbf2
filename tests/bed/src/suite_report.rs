//! What became of the cases of a Ginkgo suite, from its report.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;

/// What became of each case.
#[derive(Debug)]
pub(crate) struct Report {
    cases: Vec<Case>,
}

#[derive(Debug)]
struct Case {
    /// What the case is of, such as `[Testpattern: Dynamic PV (default fs)] volumes`.
    of: String,
    /// What it is about.
    name: String,
    end: End,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Passed,
    /// With the reason that the case gave.
    Skipped(String),
    Failed(String),
}

/// Ginkgo's `types.Report`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SuiteReport {
    #[serde(default)]
    spec_reports: Option<Vec<SpecReport>>,
}

/// Ginkgo's `types.SpecReport`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    #[serde(default)]
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

impl Report {
    /// Reads the report that Ginkgo writes as JSON.
    pub(crate) fn read(text: &str) -> serde_json::Result<Self> {
        let suites: Vec<SuiteReport> = serde_json::from_str(text)?;
        let specs = suites
            .into_iter()
            .flat_map(|suite| suite.spec_reports.unwrap_or_default());
        Ok(Report {
            cases: specs.filter_map(Case::of).collect(),
        })
    }

    /// Whether cases ran, and all of them passed.
    pub(crate) fn passed(&self) -> bool {
        let ran = self.cases.iter().any(|case| case.end == End::Passed);
        ran && self.failed().is_empty()
    }

    /// The names of the cases that failed.
    fn failed(&self) -> Vec<String> {
        let failed = self.cases.iter().filter(|case| matches!(case.end, End::Failed(_)));
        failed.map(|case| format!("{} {}", case.of, case.name)).collect()
    }
}

impl Case {
    /// A case that ran or gave a reason why it did not; none for those that were not chosen, and for what is no case.
    fn of(spec: SpecReport) -> Option<Self> {
        let reason = spec.failure.message.trim().to_owned();
        let is_case = spec.leaf_node_type == "It";
        let end = match spec.state.as_str() {
            "passed" if is_case => End::Passed,
            "skipped" if is_case && !reason.is_empty() => End::Skipped(reason),
            "passed" | "skipped" | "pending" => return None,
            // What prepares the suite or clears up after it counts too where it fails.
            _ => End::Failed(reason),
        };
        let containers = spec.container_hierarchy_texts.unwrap_or_default();
        let of = containers
            .iter()
            .skip(1)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(" ");
        let name = if is_case {
            spec.leaf_node_text
        } else {
            spec.leaf_node_type
        };
        Some(Case { of, name, end })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        let mut all = [0; 3];
        for case in &self.cases {
            let column = match &case.end {
                End::Passed => 0,
                End::Failed(_) => 1,
                End::Skipped(reason) => {
                    *reasons.entry(first_line(reason)).or_default() += 1;
                    2
                }
            };
            table.entry(&case.of).or_default()[column] += 1;
            all[column] += 1;
        }
        writeln!(f, "passed failed skipped")?;
        let ran = table.iter().filter(|(_, counts)| counts[0] + counts[1] > 0);
        for (of, [passed, failed, skipped]) in ran.chain([(&"all", &all)]) {
            writeln!(f, "{passed:6} {failed:6} {skipped:7} {of}")?;
        }
        writeln!(f, "skipped, and why:")?;
        for (reason, count) in reasons {
            writeln!(f, "{count:6} {reason}")?;
        }
        for case in &self.cases {
            if let End::Failed(reason) = &case.end {
                writeln!(f, "FAILED {} {}: {}", case.of, case.name, first_line(reason))?;
            }
        }
        Ok(())
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(kind: &str, state: &str, message: &str) -> Value {
        json!({
            "ContainerHierarchyTexts": ["External Storage [Driver: x]", "[Testpattern: Dynamic PV (xfs)] volumes"],
            "LeafNodeType": kind, "LeafNodeText": "should store data", "State": state,
            "Failure": {"Message": message},
        })
    }

    fn report(specs: &[Value]) -> Report {
        Report::read(&json!([{"SpecReports": specs}]).to_string()).expect("a report")
    }

    #[test]
    fn what_was_not_chosen_is_not_counted_and_what_was_skipped_says_why() {
        let report = report(&[
            spec("It", "passed", ""),
            spec("It", "skipped", ""),
            spec("It", "skipped", "no snapshots\nat all"),
            spec("BeforeSuite", "passed", ""),
        ]);
        assert!(report.passed());
        let said = report.to_string();
        assert!(
            said.contains("     1      0       1 [Testpattern: Dynamic PV (xfs)] volumes\n"),
            "{said}"
        );
        assert!(said.contains("     1 no snapshots\n"), "{said}");
    }

    #[test]
    fn whatever_else_becomes_of_a_case_is_a_failure() {
        for state in ["failed", "timedout", "panicked", "interrupted", "aborted"] {
            let failed = report(&[spec("It", state, "went wrong")]).failed();
            assert_eq!(
                failed,
                ["[Testpattern: Dynamic PV (xfs)] volumes should store data"],
                "{state}"
            );
        }
        assert_eq!(
            report(&[spec("SynchronizedBeforeSuite", "failed", "")]).failed().len(),
            1
        );
    }

    #[test]
    fn a_suite_in_which_nothing_ran_has_not_passed() {
        let none = Report::read(r#"[{"SpecReports": null}]"#).expect("a report");
        assert!(!none.passed());
        assert!(!report(&[spec("It", "skipped", "no snapshots")]).passed());
    }
}
