//! Which machine this is: a node's name may be given to another machine later.

use std::path::Path;

/// The machine-id of the host (machine-id(5)); `None` where it has none, or a wrong one.
///
/// `proc` is where the host's processes are seen: the root of the first one is the host's.
pub async fn id(proc: &Path) -> Option<String> {
    let path = proc.join("1/root/etc/machine-id");
    match tokio::fs::read_to_string(&path).await {
        Ok(text) => valid(&text),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "this machine is not told from another of the same name");
            None
        }
    }
}

fn valid(text: &str) -> Option<String> {
    let id = text.trim();
    // Before its first boot an image says "uninitialized", or nothing.
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_true_machine_id_is_taken() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(valid(&format!("{id}\n")).as_deref(), Some(id));
        for text in ["", "uninitialized\n", "0123", &format!("{id}0"), &id.replace('0', "-")] {
            assert_eq!(valid(text), None, "{text}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(super::id(folder.path()).await, None);
        let etc = folder.path().join("1/root/etc");
        std::fs::create_dir_all(&etc).expect("made");
        std::fs::write(etc.join("machine-id"), format!("{id}\n")).expect("written");
        assert_eq!(super::id(folder.path()).await.as_deref(), Some(id));
    }
}
