//! Texts about disks, as owners of claims get them. LVM goes by the UUIDs of physical volumes, and who knows one can write it into a raw
//! volume of their own: those who run the storage find it in the NodeLocalStorage.

/// What is left of a UUID: enough to find it there.
const SHOWN: usize = 6;

/// The text with the UUIDs of physical volumes shortened.
#[must_use]
pub fn shortened(text: &str) -> String {
    let mut short = String::with_capacity(text.len());
    // The words before: `physical volume`, and whether it was a UUID that followed them.
    let (mut last, mut before_last, mut listed) = ("", "", false);
    for word in text.split_inclusive(' ') {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let named = before_last == "physical" && ["volume", "volumes"].contains(&last);
        listed = is_uuid(bare) && (listed || named);
        if listed {
            short.push_str(&word.replace(bare, &format!("{}…", &bare[..SHOWN])));
        } else {
            short.push_str(word);
        }
        (before_last, last) = (last, bare);
    }
    short
}

/// Whether a word is a UUID as LVM writes it.
fn is_uuid(word: &str) -> bool {
    let parts: Vec<&str> = word.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    lengths == [6, 4, 4, 4, 4, 4, 6] && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "AbCdEf-gh12-ij34-kl56-mn78-op90-qrStUv";
    const SECOND: &str = "ZbCdEf-gh12-ij34-kl56-mn78-op90-qrStUw";

    #[test]
    fn owners_get_no_uuid_of_a_physical_volume() {
        let told = format!("disk /dev/disk/by-id/a (physical volume {FIRST}, serial S1) is missing; see it");
        assert_eq!(
            shortened(&told),
            "disk /dev/disk/by-id/a (physical volume AbCdEf…, serial S1) is missing; see it"
        );
        let told = format!("2 disk(s) are missing (physical volumes {FIRST}, {SECOND}); volumes on the others go on");
        assert_eq!(
            shortened(&told),
            "2 disk(s) are missing (physical volumes AbCdEf…, ZbCdEf…); volumes on the others go on"
        );
    }

    #[test]
    fn all_else_stays() {
        for text in [
            "".to_owned(),
            "no room".to_owned(),
            format!("volume group fast has UUID {FIRST}"),
            format!("annotate it with quarry.dev/lost-volume-group={FIRST}"),
            "physical volume of another".to_owned(),
            "ends with physical volume".to_owned(),
        ] {
            assert_eq!(shortened(&text), text);
        }
    }
}
