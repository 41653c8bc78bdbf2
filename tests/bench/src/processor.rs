//! Where the processor time of a node goes, by program: a profile by time that needs no counters of the processor.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use quarry_e2e::test::Test;

/// So many ticks are a second: `USER_HZ`, which Linux shows to programs on every common architecture.
const TICKS: f64 = 100.0;
/// Less than this, in seconds, is not listed.
const LEAST: f64 = 0.5;
/// What the kernel does on its own.
const KERNEL: &str = "kernel threads";

/// Seconds of processor time since each process began, by program; `… ran` is what the programs took that it has run.
pub(crate) struct Used(BTreeMap<String, f64>);

impl Used {
    /// Up to now.
    ///
    /// # Errors
    /// The node did not answer.
    pub(crate) async fn on(test: &Test, node: &str) -> Result<Self> {
        let node = test.bed.node(node)?;
        let listed = node.run_ok(["ls", "/proc"]).await?;
        let processes = listed.split_whitespace().filter(|name| name.parse::<u32>().is_ok());
        let files = processes.map(|process| format!("/proc/{process}/stat"));
        // Some of them have ended by now, which is no matter.
        let read = node.run(std::iter::once("cat".to_owned()).chain(files)).await?;
        let mut used = Self::read(&read.stdout)?;
        let whole = node.run_ok(["head", "-n1", "/proc/stat"]).await?;
        // user nice system idle: proc_stat(5).
        let idle = whole.split_whitespace().nth(4).context("no idle time")?;
        used.0.insert("idle".to_owned(), idle.parse::<f64>()? / TICKS);
        Ok(used)
    }

    /// Reads lines of proc_pid_stat(5).
    fn read(lines: &str) -> Result<Self> {
        let mut used = BTreeMap::new();
        for line in lines.lines() {
            // The name may have any characters in it.
            let (begin, rest) = line.rsplit_once(')').context("a process without a name")?;
            let name = begin.split_once('(').context("a process without a name")?.1;
            let fields: Vec<&str> = rest.split_whitespace().collect();
            let field = |number: usize| -> Result<f64> {
                let text = fields.get(number - 3).context("a line that is too short")?;
                Ok(text.parse()?)
            };
            let name = if field(4)? == 2.0 { KERNEL } else { name };
            *used.entry(name.to_owned()).or_default() += (field(14)? + field(15)?) / TICKS;
            *used.entry(format!("{name} ran")).or_default() += (field(16)? + field(17)?) / TICKS;
        }
        Ok(Self(used))
    }

    /// What was used since then.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let spent =
            |(what, now): (&String, &f64)| (what.clone(), now - before.0.get(what).copied().unwrap_or_default());
        Self(self.0.iter().map(spent).collect())
    }

    /// Both together.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        for (what, seconds) in &other.0 {
            *self.0.entry(what.clone()).or_default() += seconds;
        }
        self
    }

    /// Of nothing.
    pub(crate) fn none() -> Self {
        Self(BTreeMap::new())
    }
}

impl fmt::Display for Used {
    /// The most first, in seconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut spent: Vec<_> = self.0.iter().filter(|(_, seconds)| **seconds >= LEAST).collect();
        spent.sort_by(|one, other| other.1.total_cmp(one.1));
        let listed: Vec<_> = spent
            .iter()
            .map(|(what, seconds)| format!("{what} {seconds:.1}"))
            .collect();
        f.write_str(&listed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_summed_by_program() {
        let before = Used::read("7 (a (b) c) S 1 7 7 0 -1 4 1 2 3 4 100 50 1000 0 20 0 1 0 5 6 7\n").expect("read");
        let after = "7 (a (b) c) S 1 7 7 0 -1 4 1 2 3 4 200 50 1900 100 20 0 1 0 5 6 7\n\
            8 (a (b) c) S 1 8 8 0 -1 4 1 2 3 4 100 0 0 0 20 0 1 0 5 6 7\n\
            9 (kworker/0:1) S 2 0 0 0 -1 4 1 2 3 4 0 300 0 0 20 0 1 0 5 6 7\n\
            10 (idler) S 1 0 0 0 -1 4 1 2 3 4 0 1 0 0 20 0 1 0 5 6 7\n";
        let after = Used::read(after).expect("read");
        let spent = after.since(&before);
        assert_eq!(spent.to_string(), "a (b) c ran 10.0, kernel threads 3.0, a (b) c 2.0");
        assert_eq!(
            Used::none().and(&spent).and(&spent).to_string(),
            "a (b) c ran 20.0, kernel threads 6.0, a (b) c 4.0"
        );
        assert!(Used::read("nonsense").is_err());
    }
}
