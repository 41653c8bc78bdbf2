//! The end of the process: the first SIGTERM or SIGINT asks for it, the second one forces it.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

/// Tells every part of the process that it is to end. Clones tell the same.
#[derive(Debug, Clone)]
pub struct Shutdown {
    asked: watch::Sender<Option<Instant>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A shutdown that only [`Shutdown::ask`] asks for.
    #[must_use]
    pub fn new() -> Self {
        Self {
            asked: watch::Sender::new(None),
        }
    }

    /// A shutdown that SIGTERM or SIGINT asks for. A second signal ends the process at once.
    ///
    /// # Errors
    /// Signals cannot be received.
    pub fn on_signals() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::new();
        let ours = shutdown.clone();
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if ours.is_asked() {
                    tracing::warn!(signal = name, "a second signal: ending at once");
                    std::process::exit(1);
                }
                tracing::info!(signal = name, "shutting down");
                ours.ask();
            }
        });
        Ok(shutdown)
    }

    /// Asks for the end.
    pub fn ask(&self) {
        let now = Instant::now();
        self.asked.send_modify(|asked| *asked = asked.or(Some(now)));
    }

    /// When the end was asked for first.
    #[must_use]
    pub fn asked_at(&self) -> Option<Instant> {
        *self.asked.borrow()
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked_at().is_some()
    }

    /// Returns once the end was asked for.
    pub async fn wait(&self) {
        // The sender lives in `self`, so that this cannot fail.
        let _ = self.asked.subscribe().wait_for(Option::is_some).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_clone_hears_it_early_or_late() {
        let shutdown = Shutdown::new();
        let early = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.wait().await }
        });
        assert!(!shutdown.is_asked());
        shutdown.ask();
        early.await.expect("the task ends");
        shutdown.clone().wait().await;
        assert!(shutdown.is_asked());
    }
}
