//! The points between two side effects at which the test build of the manager can be made to die.

/// The manager's own list.
const LIST: &str = include_str!("../../../manager/crash-points.txt");

/// What leads a manager to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    /// Its start.
    Any,
    /// A raw volume.
    Claim,
    /// A volume for a file system.
    Plain,
    /// A claim of a class with binding mode Immediate.
    Immediate,
    /// A claim that does not fit.
    Reject,
    /// A claim that is deleted.
    Delete,
    /// A claim whose volume is to be written with zeros, and that is deleted.
    Wiped,
    /// A retained volume whose PersistentVolume is deleted.
    Forget,
    /// A claim that is deleted while its manager is dead.
    Leftover,
    /// A claim that is deleted while its volume is made.
    Unwanted,
    /// A class with a volume group of its own.
    GroupUp,
    /// A disk for it.
    GroupGrow,
    /// Its end.
    GroupDown,
    /// A power cut.
    Power,
}

/// A point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Its name.
    pub name: String,
    /// What leads there.
    pub leads: Leads,
}

/// All of them, in the order of the work.
///
/// # Errors
/// A line is not understood.
pub fn all() -> anyhow::Result<Vec<Point>> {
    let lines = LIST.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(parse).collect()
}

fn parse(line: &str) -> anyhow::Result<Point> {
    let mut words = line.split_whitespace();
    let (name, leads) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let leads = match leads {
        "any" => Leads::Any,
        "claim" => Leads::Claim,
        "plain" => Leads::Plain,
        "immediate" => Leads::Immediate,
        "reject" => Leads::Reject,
        "delete" => Leads::Delete,
        "wiped" => Leads::Wiped,
        "forget" => Leads::Forget,
        "leftover" => Leads::Leftover,
        "unwanted" => Leads::Unwanted,
        "group-up" => Leads::GroupUp,
        "group-grow" => Leads::GroupGrow,
        "group-down" => Leads::GroupDown,
        "power" => Leads::Power,
        _ => anyhow::bail!("crash-points.txt: {line:?} does not say what leads there"),
    };
    Ok(Point {
        name: name.to_owned(),
        leads,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_understood() {
        let points = all().expect("understood");
        assert!(points.len() > 30);
        assert!(parse("a-point nothing").is_err());
    }
}
