//! A device that shows what udev does about those of LVM: it has a name and a UUID as LVM's have them, no content, and is
//! taken away after it was looked at.

use std::path::Path;
use std::time::{Duration, Instant};

use quarry_crds::device_nodes::Shown;
use thiserror::Error;

use super::super::command::{CommandError, Limits, NotInstalled, Observer, Program};

/// Its name in device-mapper: volume `volume` of group `quarry-udev-test`.
const NAME: &str = "quarry--udev--test-volume";
/// Rules know the devices of LVM by the beginning.
const UUID: &str = "LVM-quarry-udev-test";
/// The link that is to be made, in `/dev`.
const LINK: &str = "quarry-udev-test/volume";
/// What it is made of: the first that the kernel has. Both need no disk; reads of the second fail, and the kernel says so.
const TABLES: [&str; 2] = ["0 8 zero", "0 8 error"];

/// How long udev may take to answer, and how long at most while it says that it is at work.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(100);
/// How long each command may take.
const LIMITS: Limits = Limits {
    warn_after: Duration::from_secs(5),
    deadline: Duration::from_secs(10),
    grace: Duration::from_secs(2),
    output: 1 << 20,
};

/// The programs for it.
#[derive(Debug, Clone)]
pub(super) struct TestDevice {
    dmsetup: Program,
    /// Removes the semaphore that nobody has answered.
    ipcrm: Option<Program>,
}

/// The device could not be made.
#[derive(Debug, Error)]
enum TestError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("no table was taken by the kernel: {0}")]
    Refused(CommandError),
}

impl TestDevice {
    /// Finds the programs.
    pub(super) fn new(observer: Option<Observer>) -> Result<Self, NotInstalled> {
        let find = |name| {
            let program = Program::find(name)?;
            Ok::<_, NotInstalled>(program.with_limits(LIMITS).with_observer(observer.clone()))
        };
        Ok(Self {
            dmsetup: find("dmsetup")?,
            ipcrm: find("ipcrm").ok(),
        })
    }

    /// Makes the device, waits for udev's answer and for no longer than is fit, and takes the device away.
    pub(super) async fn show(&self, dev: &Path, run: &Path) -> Shown {
        match self.try_show(dev, run).await {
            Ok(shown) => shown,
            Err(error) => Shown::Nothing(error.to_string()),
        }
    }

    async fn try_show(&self, dev: &Path, run: &Path) -> Result<Shown, TestError> {
        let cookie = self.dmsetup(&["udevcreatecookie"]).await?.trim().to_owned();
        // libdevmapper gives none where it sees no udev.
        if cookie.is_empty() {
            return Ok(Shown::NoUdev);
        }
        let shown = match self.make(&cookie).await {
            Ok(()) => self.answer(&cookie, dev, run).await,
            Err(error) => Err(error),
        };
        self.clean(&cookie, matches!(shown, Ok(Shown::Link | Shown::Answer)))
            .await;
        shown
    }

    async fn make(&self, cookie: &str) -> Result<(), TestError> {
        let mut refused = None;
        // One that a manager which was killed has left is taken away first.
        for table in TABLES.into_iter().chain(TABLES) {
            let arguments = ["create", NAME, "--uuid", UUID, "--table", table, "--udevcookie", cookie];
            match self.dmsetup(&arguments).await {
                Ok(_) => return Ok(()),
                Err(error) => refused = Some(error),
            }
            let _ = self.remove().await;
        }
        match refused {
            Some(error) => Err(TestError::Refused(error)),
            None => Ok(()),
        }
    }

    async fn answer(&self, cookie: &str, dev: &Path, run: &Path) -> Result<Shown, TestError> {
        let begun = Instant::now();
        loop {
            if !is_pending(&self.dmsetup(&["udevcookies"]).await?, cookie) {
                let link = dev.join(LINK).symlink_metadata().is_ok();
                return Ok(if link { Shown::Link } else { Shown::Answer });
            }
            let busy = run.join("queue").exists();
            if begun.elapsed() > if busy { PATIENCE.1 } else { PATIENCE.0 } {
                return Ok(Shown::Silence);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes device and semaphore away. What is left of them is taken away the next time.
    async fn clean(&self, cookie: &str, answered: bool) {
        if let Err(error) = self.remove().await {
            tracing::debug!(%error, "the test device for udev was not there, or was not removed");
        }
        if answered {
            let _ = self.dmsetup(&["udevreleasecookie", cookie]).await;
        } else if let Some(ipcrm) = &self.ipcrm {
            // Its value is not zero, so that to release it would be to wait.
            let _ = ipcrm.run("ipcrm", vec!["-S".to_owned(), cookie.to_owned()]).await;
        }
    }

    async fn remove(&self) -> Result<String, CommandError> {
        // udev may be reading it.
        self.dmsetup(&["remove", "--noudevsync", "--retry", NAME]).await
    }

    async fn dmsetup(&self, arguments: &[&str]) -> Result<String, CommandError> {
        let arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        let output = self.dmsetup.run("dmsetup", arguments).await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Whether a cookie is still waited for, by the list of all: its semaphore is 1 for whoever made it and 1 for each event.
fn is_pending(cookies: &str, cookie: &str) -> bool {
    let number = |text: &str| u32::from_str_radix(text.trim_start_matches("0x").trim_start_matches("0X"), 16).ok();
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next().and_then(number) == number(cookie)).then(|| words.nth(1)?.parse::<u32>().ok())?
    };
    cookies.lines().skip(1).find_map(of).is_some_and(|value| value > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_pending_until_its_event_was_answered() {
        let list = |value| {
            format!(
                "Cookie       Semid      Value      Last semop time           Last change time\n\
                 0xd4d0001    3          2          Thu Jan  1 00:00:00 1970  Tue Dec  1 00:46:28 2026\n\
                 0xd4d25fb    4          {value}          Tue Dec  1 00:46:28 2026  Tue Dec  1 00:46:28 2026\n"
            )
        };
        assert!(is_pending(&list(2), "0x0D4D25FB"));
        assert!(!is_pending(&list(1), "0x0D4D25FB"));
        assert!(!is_pending("", "0x0D4D25FB"), "it is gone");
        assert!(is_pending(&list(1), "0x0D4D0001"));
    }
}
