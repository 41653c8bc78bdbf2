//! The data in each volume: a pattern of its own, written once, and proved each time a pod starts and at each check.
//!
//! A pattern is one line again and again. Its length divides the size of a page, so that a power cut leaves whole lines.
//! After the pattern, a random word is written: where it is another one later, the volume was made anew in secret.

/// What a container or a node ends with when a volume holds what it may not.
pub const CORRUPT: i64 = 42;
/// What it ends with when data is not there any more.
pub const LOST: i64 = 43;

/// The line of which the pattern of a volume consists: 63 characters, and another for each claim of each run.
#[must_use]
pub fn line(seed: u64, claim: &str, generation: u32) -> String {
    let text = format!("torture-{seed:016x}-{claim}-{generation}-");
    format!("{text:.<63}")
}

/// Arguments: line, mounted directory, 1 where the volume may be new.
///
/// The script writes what is to be there, or proves that it is; it prints the random word.
pub const DIRECTORY: &str = r#"
line=$1; dir=$2; new=$3
say() { echo "$1"; echo "$1" > /dev/termination-log 2>/dev/null; exit $2; }
pattern() { yes "$line" | head -c 1048576; }
# Of a pod that was made anew at once, two run this at the same time.
exec 9< $dir; flock 9
if [ -e $dir/word ]; then
  pattern | cmp -s - $dir/pattern || say "$dir does not hold its pattern but: $(head -c 150 $dir/pattern)" 42
  cat $dir/word; exit 0
fi
[ $new = 1 ] || say "$dir has lost its data; it holds: $(ls -A $dir)" 43
old=$(ls -A $dir | grep -v -x -e lost+found -e pattern -e word.new)
[ -z "$old" ] || say "$dir is new and holds: $old" 42
if [ -s $dir/pattern ]; then
  found=$(grep -a -v -x "$line" $dir/pattern | tr -d '\0' | head -c 150)
  [ -z "$found" ] || say "$dir is new and holds: $found" 42
fi
set -e
pattern > $dir/pattern; sync $dir/pattern
cat /proc/sys/kernel/random/uuid > $dir/word.new; sync $dir/word.new
mv $dir/word.new $dir/word; sync $dir
cat $dir/word
"#;

/// Arguments: line, device, 1 where the volume may be new. A new raw volume holds zeros, or what an interrupted start
/// of this script wrote, and nothing else.
pub const DEVICE: &str = r#"
line=$1; dev=$2; new=$3
say() { echo "$1"; echo "$1" > /dev/termination-log 2>/dev/null; exit $2; }
pattern() { yes "$line" | head -c 1048576; }
[ -e $dev ] || exit 1
word=$(dd if=$dev bs=4096 skip=256 count=1 2>/dev/null | tr -d '\0')
prove() {
  pattern | cmp -s -n 1048576 - $dev || say "$dev does not hold its pattern but: $(head -c 150 $dev | tr -cd '[:print:]')" 42
  echo $word; exit 0
}
case $word in word-*) prove;; esac
[ $new = 1 ] || say "$dev has lost its data; it holds: $(head -c 150 $dev | tr -cd '[:print:]')" 43
old=$(tr -d '\0' < $dev | grep -a -v -x "$line" | head -c 150 | tr -cd '[:print:]')
[ -z "$old" ] || say "$dev is new and holds: $old" 42
set -e
pattern | dd of=$dev bs=64k iflag=fullblock conv=nocreat,fsync,notrunc 2>/dev/null
# Another, of the same pod that was made anew, may have been faster; no lock is common to the device nodes of two containers.
word=$(dd if=$dev bs=4096 skip=256 count=1 2>/dev/null | tr -d '\0')
case $word in word-*) prove;; esac
printf 'word-%s' $(cat /proc/sys/kernel/random/uuid) | dd of=$dev bs=4096 seek=256 conv=nocreat,sync,fsync,notrunc 2>/dev/null
dd if=$dev bs=4096 skip=256 count=1 2>/dev/null | tr -d '\0'
"#;

/// Run in a node, outside any container: for each volume with a file system that is mounted for a pod, the name of the
/// PersistentVolume, the word, and the first and the last of the different lines of its pattern with their number.
pub const MOUNTED: &str = r#"
for dir in /var/lib/kubelet/pods/*/volumes/kubernetes.io~local-volume/pvc-*; do
  [ -e $dir/word ] || continue
  echo ${dir##*/} $(cat $dir/word) $(uniq -c $dir/pattern | head -n 2)
done
"#;

/// How many lines a whole pattern has.
pub const LINES: u64 = 1_048_576 / 64;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Output};

    use super::*;

    fn run(script: &str, line: &str, place: &std::path::Path, new: &str) -> Output {
        let place = place.to_str().expect("a path");
        let output = Command::new("sh").args(["-c", script, "sh", line, place, new]).output();
        output.expect("it runs")
    }

    fn code(output: &Output) -> i64 {
        output.status.code().expect("it ended by itself").into()
    }

    #[test]
    fn lines_divide_pages_and_differ() {
        let one = line(1, "c12", 0);
        assert_eq!(one.len(), 63);
        assert_ne!(one, line(1, "c12", 1));
        assert_ne!(one, line(2, "c12", 0));
        assert_eq!(line(u64::MAX, "e1234567-data", 123).len(), 63);
    }

    #[test]
    fn a_raw_volume_is_written_once_and_proved_afterwards() {
        let place = std::env::temp_dir().join(format!("quarry-torture-{}", std::process::id()));
        let (own, other) = (line(1, "c1", 0), line(1, "c2", 0));
        std::fs::write(&place, vec![0; 4 << 20]).expect("written");
        let lost = run(DEVICE, &own, &place, "0");
        assert_eq!(code(&lost), LOST);
        let first = run(DEVICE, &own, &place, "1");
        assert_eq!(code(&first), 0, "{first:?}");
        assert!(first.stdout.starts_with(b"word-"));
        let again = run(DEVICE, &own, &place, "0").stdout;
        assert_eq!(again.trim_ascii(), first.stdout.trim_ascii());
        assert_eq!(code(&run(DEVICE, &other, &place, "0")), CORRUPT);
        // Old data behind what a file system or a signature would show.
        let mut bytes = vec![0; 4 << 20];
        (&mut bytes[3 << 20..]).write_all(other.as_bytes()).expect("written");
        std::fs::write(&place, &bytes).expect("written");
        let old = run(DEVICE, &own, &place, "1");
        assert_eq!(code(&old), CORRUPT);
        assert!(String::from_utf8_lossy(&old.stdout).contains(&other), "{old:?}");
        // What an interrupted start of its own left is no old data.
        let mut bytes = vec![0; 4 << 20];
        (&mut bytes[8192..])
            .write_all(format!("{own}\n{own}\n").as_bytes())
            .expect("written");
        std::fs::write(&place, &bytes).expect("written");
        assert_eq!(code(&run(DEVICE, &own, &place, "1")), 0);
        std::fs::remove_file(&place).expect("removed");
    }

    #[test]
    fn two_at_once_write_one_word() {
        let place = std::env::temp_dir().join(format!("quarry-torture-two-{}", std::process::id()));
        let own = line(1, "c1", 0);
        for _ in 0..5 {
            std::fs::create_dir_all(&place).expect("made");
            let words = std::thread::scope(|scope| {
                let both = [(); 2].map(|()| scope.spawn(|| run(DIRECTORY, &own, &place, "1")));
                both.map(|one| one.join().expect("it ran").stdout)
            });
            assert!(!words[0].is_empty());
            assert_eq!(words[0], words[1]);
            std::fs::remove_dir_all(&place).expect("removed");
        }
    }

    #[test]
    fn a_directory_is_written_once_and_proved_afterwards() {
        let place = std::env::temp_dir().join(format!("quarry-torture-dir-{}", std::process::id()));
        let own = line(1, "c1", 0);
        std::fs::create_dir_all(place.join("lost+found")).expect("made");
        assert_eq!(code(&run(DIRECTORY, &own, &place, "0")), LOST);
        let first = run(DIRECTORY, &own, &place, "1");
        assert_eq!(code(&first), 0, "{first:?}");
        assert_eq!(run(DIRECTORY, &own, &place, "0").stdout, first.stdout);
        assert_eq!(code(&run(DIRECTORY, &line(1, "c2", 0), &place, "1")), CORRUPT);
        std::fs::remove_file(place.join("word")).expect("removed");
        assert_eq!(code(&run(DIRECTORY, &line(1, "c2", 0), &place, "1")), CORRUPT);
        std::fs::write(place.join("else"), "x").expect("written");
        assert_eq!(code(&run(DIRECTORY, &own, &place, "1")), CORRUPT);
        std::fs::remove_dir_all(&place).expect("removed");
    }
}
