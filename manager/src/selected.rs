//! Disks that a selector of a class has chosen: taken only once they were there, unchanged and unused for a while.
//!
//! A selector says nothing of a single disk. One that is attached while the manager runs may be meant for somebody else, who has
//! not come to format it yet: in clouds and virtual machines all network disks have one model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::ResourceExt as _;
use quarry_crds::storage_class::{ClassParameters, DiskSelector, is_ours};
use quarry_crds::volume_group::{DiskStanding, hold_selected};
use tokio::time::Instant;

use crate::context::{Context, Probed};

/// Since when blank disks that a selector has chosen are as they are, by path.
#[derive(Debug, Default)]
pub struct Settling(Mutex<BTreeMap<String, Seen>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    since: Instant,
    print: Option<String>,
}

impl Settling {
    /// Takes over what is seen now; which disks have been as they are for `long` or longer.
    fn saw(&self, waiting: BTreeMap<String, Option<String>>, long: Duration) -> BTreeSet<String> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let as_before = |path: &String, print: &Option<String>| {
            let before = seen.get(path).filter(|before| before.print == *print);
            before.map_or(now, |before| before.since)
        };
        let next: BTreeMap<String, Seen> = waiting
            .into_iter()
            .map(|(path, print)| {
                let since = as_before(&path, &print);
                (path, Seen { since, print })
            })
            .collect();
        let settled = next.iter().filter(|(_, seen)| now.duration_since(seen.since) >= long);
        let settled = settled.map(|(path, _)| path.clone()).collect();
        *seen = next;
        settled
    }

    /// How long it is until the next disk may be taken; `None` where none waits.
    #[must_use]
    pub fn due(&self, long: Duration) -> Option<Duration> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.values()
            .map(|seen| long.saturating_sub(seen.since.elapsed()))
            .min()
    }
}

/// Has those of the disks wait that nothing but a selector has chosen, and that were not unused for long enough yet.
pub async fn hold(context: &Context, probed: &mut [Probed]) {
    let selected = chosen(context).await;
    let waits = |probed: &&Probed| probed.disk.standing == DiskStanding::Blank && selected.contains(&probed.disk.path);
    let waiting = probed
        .iter()
        .filter(waits)
        .map(|one| (one.disk.path.clone(), one.print.clone()));
    let settled = context.groups.settling.saw(waiting.collect(), context.selected_after);
    hold_selected(probed.iter_mut().map(|one| &mut one.disk), &selected, &settled);
}

/// The disks that selectors of the classes of this node choose, less those that a class lists by path.
async fn chosen(context: &Context) -> BTreeSet<String> {
    let (mut models, mut listed) = (BTreeSet::new(), BTreeSet::new());
    let Some(labels) = context.objects.node.state().first().map(|node| node.labels().clone()) else {
        return BTreeSet::new();
    };
    for class in context.objects.classes.state_filter(is_ours) {
        let Ok(parameters) = ClassParameters::of(&class) else {
            continue;
        };
        for disk in parameters.disks_of(&context.node, &labels).into_iter().flatten() {
            match disk {
                DiskSelector::Path(path) => listed.insert(path.clone()),
                DiskSelector::Model(model) => models.insert(model.clone()),
            };
        }
    }
    let mut chosen = BTreeSet::new();
    for model in models {
        chosen.extend(context.disks.of_model(model).await);
    }
    &chosen - &listed
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_disk_has_to_be_as_it_is_for_the_whole_time() {
        let settling = Settling::default();
        let saw = |disks: &[(&str, &str)]| {
            let disks = disks
                .iter()
                .map(|(path, print)| ((*path).to_owned(), Some((*print).to_owned())));
            settling.saw(disks.collect(), LONG).into_iter().collect::<Vec<_>>()
        };
        let wait = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        assert_eq!((saw(&[]), settling.due(LONG)), (vec![], None));
        assert_eq!(saw(&[("a", "1"), ("b", "1")]), Vec::<String>::new());
        assert_eq!(settling.due(LONG), Some(LONG));
        wait(40).await;
        assert_eq!(saw(&[("a", "1"), ("b", "2")]), Vec::<String>::new(), "b was written to");
        assert_eq!(settling.due(LONG), Some(Duration::from_secs(20)));
        wait(20).await;
        assert_eq!(saw(&[("a", "1"), ("b", "2")]), ["a"]);
        wait(39).await;
        assert_eq!(saw(&[("b", "2")]), Vec::<String>::new());
        wait(1).await;
        assert_eq!(saw(&[]), Vec::<String>::new(), "it was in use for a moment");
        assert_eq!(saw(&[("b", "2")]), Vec::<String>::new());
        wait(60).await;
        assert_eq!(saw(&[("b", "2")]), ["b"]);
    }
}
