//! What `bad-lvm` can be told to do: a file of rules beside the program, `<program>.rules`, one rule a line.
//!
//! ```text
//! real /usr/sbin/lvm
//! lvcreate 2 1 fail-after
//! ```
//!
//! The second rule is for `lvcreate` (`*` for any command): the first 2 runs go well, the next 1 fails after its work
//! was done. A rule that was used up is taken out. Every run is noted in `<program>.log`.

mod act;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

pub use act::run;

macro_rules! deeds {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// What a run does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Deed { $($(#[$doc])* $name),+ }

        impl Deed {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// As it is written in a rule.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }
    };
}

deeds! {
    /// What LVM does.
    Right = "right",
    /// It does nothing and does not end; SIGTERM ends it.
    Hang = "hang",
    /// It does nothing and does not end; SIGTERM does not end it.
    HangStubborn = "hang-stubborn",
    /// It does its work and does not end; SIGTERM does not end it.
    HangAfter = "hang-after",
    /// It is killed before it did anything.
    Kill = "kill",
    /// It is killed after its work was done.
    KillAfter = "kill-after",
    /// It does nothing and fails with code 5.
    Fail = "fail",
    /// It does its work and fails with code 5.
    FailAfter = "fail-after",
    /// It does nothing and succeeds.
    Nothing = "nothing",
    /// It does its work with a megabyte of warnings, which are not UTF-8.
    Warn = "warn",
    /// It does its work, and a warning is on its standard output before everything else.
    Noise = "noise",
    /// It does its work; its output is replaced by something that is no JSON.
    Garbage = "garbage",
    /// It does its work; its output is replaced by a report with a name that is not UTF-8.
    NotUtf8 = "not-utf8",
    /// It does its work; half of its output is lost.
    Cut = "cut",
    /// It does its work; its output is replaced by a report of nothing at all.
    Empty = "empty",
    /// It does its work; its output is replaced by 20 MiB of blanks.
    Huge = "huge",
    /// It does nothing and writes until it is killed.
    Endless = "endless",
    /// It ends well at once; what it started does the work 2 s later, and holds its output open for 20 s.
    Background = "background",
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    command: String,
    skip: u32,
    times: u32,
    deed: Deed,
}

/// Where the rules of a program are.
#[must_use]
pub fn rules_of(program: &Path) -> PathBuf {
    beside(program, "rules")
}

/// Where the runs of a program are noted.
#[must_use]
pub fn log_of(program: &Path) -> PathBuf {
    beside(program, "log")
}

fn beside(program: &Path, what: &str) -> PathBuf {
    let mut name = program.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}

/// What this run of a command is to do, and the real program where the rules name one. The rule is used up by it.
///
/// # Errors
/// The rules are not there or not understood.
pub fn next(program: &Path, command: &str) -> Result<(Deed, Option<PathBuf>)> {
    let path = rules_of(program);
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    // Several commands run at once.
    let mut file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let (mut rules, mut real) = (Vec::new(), None);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["real", path] => real = Some(PathBuf::from(path)),
            [command, skip, times, deed] => rules.push(Rule {
                command: (*command).to_owned(),
                skip: skip.parse()?,
                times: times.parse()?,
                deed: *(Deed::ALL.iter().find(|known| known.text() == *deed))
                    .with_context(|| format!("no deed {deed}"))?,
            }),
            _ => bail!("not a rule: {line}"),
        }
    }
    let deed = choose(&mut rules, command);
    let mut left = real
        .as_ref()
        .map_or_else(String::new, |real| format!("real {}\n", real.display()));
    for rule in &rules {
        left.push_str(&format!(
            "{} {} {} {}\n",
            rule.command, rule.skip, rule.times, rule.deed
        ));
    }
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(left.as_bytes())?;
    note(program, &format!("{command} {deed}"))?;
    Ok((deed, real))
}

fn choose(rules: &mut Vec<Rule>, command: &str) -> Deed {
    let found = rules
        .iter()
        .position(|rule| rule.command == command || rule.command == "*");
    let Some(at) = found else { return Deed::Right };
    if rules[at].skip > 0 {
        rules[at].skip -= 1;
        return Deed::Right;
    }
    let deed = rules[at].deed;
    rules[at].times = rules[at].times.saturating_sub(1);
    if rules[at].times == 0 {
        rules.remove(at);
    }
    deed
}

fn note(program: &Path, line: &str) -> Result<()> {
    let mut log: File = OpenOptions::new().create(true).append(true).open(log_of(program))?;
    Ok(log.write_all(format!("{line}\n").as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_for_its_command_after_so_many_runs_and_so_often() {
        let directory = tempfile::tempdir().expect("made");
        let program = directory.path().join("lvm");
        std::fs::write(rules_of(&program), "real /bin/true\nlvcreate 1 2 fail\n").expect("written");
        let run = |command| next(&program, command).expect("read").0;
        let runs = ["lvcreate", "vgcreate", "lvcreate", "lvcreate", "lvcreate"].map(run);
        assert_eq!(runs, [Deed::Right, Deed::Right, Deed::Fail, Deed::Fail, Deed::Right]);
        let left = std::fs::read_to_string(rules_of(&program)).expect("read");
        assert_eq!(left, "real /bin/true\n");
        let log = std::fs::read_to_string(log_of(&program)).expect("read");
        assert_eq!(log.lines().nth(2), Some("lvcreate fail"));
    }
}
