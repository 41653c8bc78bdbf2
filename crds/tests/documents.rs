//! The documents of failures name tests. A row whose test is gone would promise what nothing shows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file below a folder that ends so, build folders and fetched files left out.
fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, ending, found);
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

/// The names of all functions, in all crates.
fn functions() -> BTreeSet<String> {
    let mut sources = Vec::new();
    files(&repository(), ".rs", &mut sources);
    let mut names = BTreeSet::new();
    for source in sources {
        let text = std::fs::read_to_string(source).expect("a source");
        for part in text.split("fn ").skip(1) {
            let end = part
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .unwrap_or(0);
            names.insert(part[..end].to_owned());
        }
    }
    names
}

/// What stands in backticks in the last column of the tables of one document, with its line.
fn named(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some(row) = line.strip_prefix('|') else { continue };
        let row = row.trim_end().trim_end_matches('|').replace("\\|", " ");
        let Some((_, last)) = row.rsplit_once('|') else {
            continue;
        };
        for name in last.split('`').skip(1).step_by(2) {
            found.push((number + 1, name.to_owned()));
        }
    }
    found
}

/// The targets of make and the crash points, which a row may name too.
fn commands() -> BTreeSet<String> {
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).expect("a file");
    let (make, points) = (read("Makefile"), read("manager/crash-points.txt"));
    let targets = make.lines().filter_map(|line| line.split_once(':'));
    let targets = targets.map(|(target, _)| format!("make {target}"));
    let points = points.lines().filter_map(|line| line.split_whitespace().next());
    targets.chain(points.map(str::to_owned)).collect()
}

#[test]
fn every_test_that_a_failure_names_exists() {
    let mut functions = functions();
    functions.extend(commands());
    let mut documents = Vec::new();
    files(&repository().join("docs/failures"), ".md", &mut documents);
    assert!(
        documents.len() > 3 && functions.len() > 500,
        "the repository is not looked at"
    );
    let mut missing = Vec::new();
    for document in documents {
        let text = std::fs::read_to_string(&document).expect("a document");
        let names = named(&text);
        assert!(!names.is_empty(), "{} names no test", document.display());
        let gone = names.into_iter().filter(|(_, name)| !functions.contains(name));
        missing.extend(gone.map(|(line, name)| format!("{}:{line}: {name}", document.display())));
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn every_row_of_a_failure_has_a_test() {
    let mut documents = Vec::new();
    files(&repository().join("docs/failures"), ".md", &mut documents);
    for document in documents {
        let text = std::fs::read_to_string(&document).expect("a document");
        let rows = text.lines().enumerate().filter(|(_, line)| line.starts_with('|'));
        for (number, row) in rows {
            let head = row.starts_with("| scenario") || row.starts_with("|---");
            assert!(
                head || !named(row).is_empty(),
                "{}:{}: {row}",
                document.display(),
                number + 1
            );
        }
    }
}

#[test]
fn the_index_names_every_document() {
    let index = std::fs::read_to_string(repository().join("docs/failures.md")).expect("the index");
    let mut documents = Vec::new();
    files(&repository().join("docs/failures"), ".md", &mut documents);
    for document in documents {
        let name = document.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(index.contains(&format!("(failures/{name})")), "{name}");
    }
}
