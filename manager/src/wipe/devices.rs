//! Work on devices in threads of its own: to read from or write to a device that is suspended, or whose disk does not answer,
//! takes until it does, and nothing ends such a thread. So there is one at a time for each volume, and none for a device that
//! is suspended.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Target, WipeError};

/// After this time nobody waits any more for what a thread does; it goes on until the kernel lets it end.
const PATIENCE: Duration = Duration::from_secs(900);

/// The volumes that threads are at work on.
#[derive(Debug, Clone, Default)]
pub(super) struct Devices(Arc<Mutex<HashSet<String>>>);

/// One volume that a thread is at work on, until this is dropped.
struct Entered(Devices, String);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Devices {
    fn enter(&self, uuid: &str) -> Option<Entered> {
        let mut at_work = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = at_work.insert(uuid.to_owned());
        free.then(|| Entered(self.clone(), uuid.to_owned()))
    }

    /// Does something with the device of a volume in a thread.
    ///
    /// # Errors
    /// What the kernel said, or that an earlier piece of work has not ended.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        target: &Target,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, WipeError> {
        let Some(entered) = self.enter(&target.volume_uuid) else {
            return Err(WipeError::Stuck(target.path.clone()));
        };
        let thread = tokio::task::spawn_blocking(move || {
            let _entered = entered;
            work()
        });
        let result = match tokio::time::timeout(PATIENCE, thread).await {
            Ok(joined) => joined.unwrap_or_else(|error| Err(io::Error::other(error))),
            Err(_) => return Err(WipeError::Stuck(target.path.clone())),
        };
        result.map_err(|cause| WipeError::Io {
            path: target.path.clone(),
            cause,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use quarry_crds::Bytes;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_device_that_does_not_answer_takes_one_thread_and_no_more() {
        let target = Target {
            path: PathBuf::from("/dev/vg/pvc-a"),
            group_uuid: "g".to_owned(),
            volume_uuid: "v".to_owned(),
            size: Bytes::mib(1),
        };
        let devices = Devices::default();
        let (answer, answers) = std::sync::mpsc::channel::<()>();
        let stuck = devices.work(&target, move || {
            let _ = answers.recv();
            Ok(())
        });
        tokio::pin!(stuck);
        assert!(futures::poll!(&mut stuck).is_pending());
        for _ in 0..100 {
            let again = devices.work(&target, || Ok(())).await;
            assert!(matches!(again, Err(WipeError::Stuck(_))), "{again:?}");
        }
        let other = Target {
            volume_uuid: "w".to_owned(),
            ..target.clone()
        };
        devices.work(&other, || Ok(())).await.expect("another one goes on");
        drop(answer);
        stuck.await.expect("it answers");
        devices.work(&target, || Ok(())).await.expect("it goes on");
    }
}
