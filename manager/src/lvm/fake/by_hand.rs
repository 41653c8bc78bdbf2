//! What a person does with LVM's own commands, as far as Quarry has to see it.

use quarry_crds::Extents;

use super::super::LogicalVolume;
use super::model::{allocate, position, release};
use super::{FakeLvm, Inner};

impl FakeLvm {
    /// `lvcreate -s -n <name> -l <extents> <group>/<volume>`: why not, where LVM would refuse.
    ///
    /// # Errors
    /// LVM's words.
    pub fn snapshot(&self, group: &str, volume: &str, name: &str, extents: Extents) -> Result<(), String> {
        self.backend().lock().snapshot(group, volume, name, extents)
    }

    /// `lvremove <group>/<name>` of a volume that is not ours.
    ///
    /// # Errors
    /// LVM's words.
    pub fn remove_by_hand(&self, group: &str, name: &str) -> Result<(), String> {
        self.backend().lock().remove_by_hand(group, name)
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Inner {
    fn snapshot(&mut self, group: &str, volume: &str, name: &str, extents: Extents) -> Result<(), String> {
        let uuid = self.uuid();
        let group = self.whole(group)?;
        let at = position(group, volume)?;
        if group.volume_named(name).is_some() {
            return Err(format!("Logical Volume {name:?} already exists"));
        }
        let parts = allocate(group, extents, &[])?;
        let size = group.extent_size.size_of(extents).ok_or("too large")?;
        group.logical_volumes[at].roles = words(&["public", "origin", "thickorigin"]);
        let of = group.logical_volumes[at].clone();
        group.logical_volumes.push(LogicalVolume {
            name: name.to_owned(),
            path: format!("/dev/{}/{name}", group.name),
            uuid,
            size,
            extents,
            tags: Vec::new(),
            roles: words(&["public", "snapshot", "thicksnapshot"]),
            origin: Some(volume.to_owned()),
            open: Some(false),
            parts,
            ..of
        });
        Ok(())
    }

    fn remove_by_hand(&mut self, group: &str, name: &str) -> Result<(), String> {
        let group = self.whole(group)?;
        let at = position(group, name)?;
        let removed = group.logical_volumes.remove(at);
        release(group, &removed.parts);
        if let Some(origin) = removed.origin
            && !group
                .logical_volumes
                .iter()
                .any(|volume| volume.origin.as_ref() == Some(&origin))
        {
            let at = position(group, &origin)?;
            group.logical_volumes[at].roles = words(&["public"]);
        }
        Ok(())
    }
}
