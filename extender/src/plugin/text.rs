//! Tables and sentences for people.

use std::fmt::{self, Write};

use quarry_crds::extents::Bytes;

use super::status::Status;
use super::why::{NodeRow, Outcome, Why, plain};
use crate::decide::Cause;

/// How many rows of a table are shown unless all are asked for.
pub const ROWS: usize = 20;

/// Rows with a heading, each column as wide as its widest cell.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these headings.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()],
        }
    }

    /// Adds a row; an empty cell is written as `-`.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cell = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
        self.rows.push(cells.into_iter().map(cell).collect());
    }

    /// Whether it has no row beside its heading.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// The same with that many rows at most, and how many are left out.
    #[must_use]
    pub fn limited(mut self, rows: usize) -> (Self, usize) {
        let left_out = self.rows.len().saturating_sub(rows + 1);
        self.rows.truncate(rows + 1);
        (self, left_out)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                write!(line, "{cell:<width$}   ")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A size for people: exact, in the largest unit that needs no fraction, or in Gi with one decimal.
#[must_use]
pub fn size(bytes: u64) -> String {
    let exact = Bytes(bytes).to_string();
    if exact.len() <= 6 {
        return exact;
    }
    // Down, so that nobody asks for more than there is.
    let (unit, name) = match bytes {
        0..0x4000_0000 => (1 << 20, "Mi"),
        0x4000_0000..0x100_0000_0000 => (1 << 30, "Gi"),
        _ => (1_u64 << 40, "Ti"),
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    format!("{}.{}{name}", tenths / 10, tenths % 10)
}

/// Writes a report for people.
#[must_use]
pub fn why(why: &Why, all: bool) -> String {
    let mut text = String::new();
    // Writing to a String never fails.
    let _ = write_why(&mut text, why, all);
    text
}

fn write_why(text: &mut String, why: &Why, all: bool) -> fmt::Result {
    writeln!(text, "{}", why.summary)?;
    if why.placed_on.is_none()
        && let Some(said) = &why.scheduler
    {
        writeln!(text, "The scheduler says: {said}")?;
    }
    if why.claims.is_empty() {
        return Ok(());
    }
    let mut claims = Table::new(&["CLAIM", "CLASS", "ASKED", "NODE", "STATE"]);
    for claim in &why.claims {
        claims.row([
            claim.name.clone(),
            claim.class.clone().unwrap_or_default(),
            claim.asked_bytes.map(size).unwrap_or_default(),
            claim.node.clone().unwrap_or_default(),
            claim.state.clone(),
        ]);
    }
    write!(text, "\n{claims}")?;
    if !matches!(why.outcome, Outcome::NothingAsked | Outcome::Placed | Outcome::Unclear) {
        write_nodes(text, why, all)?;
    }
    for said in &why.said {
        writeln!(text, "\nLast warning of {}: {}: {}", said.of, said.reason, said.message)?;
    }
    if !why.help.is_empty() {
        writeln!(text, "\nWhat would help:")?;
        for help in &why.help {
            writeln!(text, "  * {help}.")?;
        }
    }
    for note in &why.notes {
        writeln!(text, "\nNote: {note}.")?;
    }
    Ok(())
}

fn write_nodes(text: &mut String, why: &Why, all: bool) -> fmt::Result {
    let mut rows: Vec<&NodeRow> = why.nodes.iter().collect();
    // Those with room first, then those that come nearest, then the others.
    rows.sort_by_key(|node| {
        let missing = node
            .groups
            .iter()
            .fold(0, |sum: u64, group| sum.saturating_add(group.missing_bytes));
        (!node.fits, node.groups.is_empty(), missing, node.node.clone())
    });
    let limit = if all { usize::MAX - 1 } else { ROWS };
    let mut nodes = Table::new(&["NODE", "VG", "ASKED", "FREE", "IN FLIGHT", "SIZE", "VERDICT"]);
    let mut in_flight = Table::new(&["NODE", "VG", "IN FLIGHT", "CLAIM"]);
    for node in &rows {
        if node.groups.is_empty() {
            let dashes = std::iter::repeat_n(String::new(), 5);
            nodes.row(std::iter::once(node.node.clone()).chain(dashes).chain([verdict(node)]));
        }
        for group in &node.groups {
            nodes.row([
                node.node.clone(),
                group.volume_group.clone(),
                size(group.asked_bytes),
                size(group.free_bytes),
                size(group.in_flight_bytes),
                size(group.size_bytes),
                if group.missing_bytes > 0 {
                    format!("lacks {}", size(group.missing_bytes))
                } else if node.cause == Some(Cause::NoRoom.as_str()) {
                    "has room here".to_owned()
                } else {
                    verdict(node)
                },
            ]);
            for claim in &group.in_flight {
                in_flight.row([
                    node.node.clone(),
                    group.volume_group.clone(),
                    size(claim.bytes),
                    claim.claim.clone(),
                ]);
            }
        }
    }
    for table in [nodes, in_flight] {
        if !table.is_empty() {
            let (table, left_out) = table.limited(limit);
            write!(text, "\n{table}")?;
            if left_out > 0 {
                writeln!(text, "… and {left_out} more; --all shows them")?;
            }
        }
    }
    Ok(())
}

/// Writes how Quarry stands for people.
#[must_use]
pub fn status(status: &Status, all: bool) -> String {
    let mut text = String::new();
    // Writing to a String never fails.
    let _ = write_status(&mut text, status, all);
    text
}

fn write_status(text: &mut String, status: &Status, all: bool) -> fmt::Result {
    let limit = if all { usize::MAX - 1 } else { ROWS };
    let mut nodes = Table::new(&["NODE", "MANAGER", "GROUPS", "DISKS", "VOLUMES", "SIZE", "FREE"]);
    for node in &status.nodes {
        nodes.row([
            node.node.clone(),
            node.manager.to_owned(),
            format!("{}/{} ready", node.groups_ready, node.groups),
            match node.disks_not_good {
                0 => node.disks.to_string(),
                bad => format!("{}, {bad} not good", node.disks),
            },
            node.volumes.to_string(),
            size(node.size_bytes),
            size(node.free_bytes),
        ]);
    }
    let mut groups = Table::new(&[
        "NODE",
        "VG",
        "CLASSES",
        "READY",
        "SIZE",
        "FREE",
        "IN FLIGHT",
        "LARGEST",
        "VOLUMES",
    ]);
    for group in &status.groups {
        groups.row([
            group.node.clone(),
            group.volume_group.clone(),
            group.classes.join(","),
            if group.ready { "yes" } else { "no" }.to_owned(),
            size(group.size_bytes),
            size(group.free_bytes),
            size(group.in_flight_bytes),
            size(group.largest_bytes),
            group.volumes.to_string(),
        ]);
    }
    let mut disks = Table::new(&["NODE", "VG", "DISK", "DEVICE", "MEDIA", "SIZE", "FREE", "STATE"]);
    for disk in &status.disks {
        disks.row([
            disk.node.clone(),
            disk.volume_group.clone(),
            disk.path.clone(),
            disk.device.clone().unwrap_or_default(),
            disk.media.clone().unwrap_or_default(),
            disk.size_bytes.map(size).unwrap_or_default(),
            disk.free_bytes.map(size).unwrap_or_default(),
            disk.phase.clone(),
        ]);
    }
    for table in [nodes, groups, disks] {
        if !table.is_empty() {
            let (table, left_out) = table.limited(limit);
            write!(text, "{table}")?;
            if left_out > 0 {
                writeln!(text, "… and {left_out} more; --all shows them")?;
            }
            writeln!(text)?;
        }
    }
    let volumes = &status.volumes;
    writeln!(
        text,
        "Volumes: {} of {} together, {} being removed. Claims: {} bound, {} in flight, {} without a node.",
        volumes.count,
        size(volumes.bytes),
        volumes.going,
        volumes.claims_bound,
        volumes.claims_in_flight,
        volumes.claims_waiting
    )?;
    writeln!(text, "Scheduler: {}.", status.scheduler.summary)?;
    if status.wrong.is_empty() {
        writeln!(text, "Nothing is wrong.")?;
    } else {
        writeln!(text, "\nWhat is not good:")?;
        let shown = status.wrong.iter().take(limit);
        for wrong in shown {
            writeln!(text, "  * {wrong}.")?;
        }
        if status.wrong.len() > limit {
            writeln!(text, "  … and {} more; --all shows them", status.wrong.len() - limit)?;
        }
    }
    for note in &status.notes {
        writeln!(text, "\nNote: {note}.")?;
    }
    Ok(())
}

fn verdict(node: &NodeRow) -> String {
    let mut verdict = match &node.reason {
        None if node.fits => "has room".to_owned(),
        None => String::new(),
        Some(reason) => plain(reason).to_owned(),
    };
    if !node.remarks.is_empty() {
        let _ = write!(verdict, ", but {}", node.remarks.join(" and "));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["A", "LONG"]);
        table.row(["äöü".to_owned(), String::new()]);
        table.row(["x".to_owned(), "y".to_owned()]);
        assert_eq!(table.to_string(), "A     LONG\näöü   -\nx     y\n");
        let (table, left_out) = table.limited(1);
        assert_eq!((table.to_string().lines().count(), left_out), (2, 1));
    }

    #[test]
    fn sizes_are_exact_where_that_is_short_and_never_rounded_up() {
        for (bytes, text) in [
            (0, "0"),
            (4 << 20, "4Mi"),
            (5100 << 20, "5100Mi"),
            (15_996 << 20, "15.6Gi"),
            ((100 << 30) - 1, "99.9Gi"),
            (u64::MAX, "16777215.9Ti"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
