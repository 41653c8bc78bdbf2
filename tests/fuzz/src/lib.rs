//! What must hold for every input that Quarry reads from outside, however odd: a panic is a fault.
//!
//! Each function takes the bytes of one input. `libfuzzer/` makes them up, guided by coverage (`make fuzz`); the tests
//! here read those that are kept in `corpus/`, and so does every run of the fuzzer first.

use std::collections::BTreeMap;

use k8s_openapi::api::storage::v1::StorageClass;
use quarry_crds::names::{PROVISIONER, check_volume_group_name, device_path};
use quarry_crds::storage_class::{ClassParameters, DiskSelector};
use quarry_crds::{Bytes, quantity};

mod extender;

pub use extender::{filter, preempt, prioritize};

/// A quantity, such as the size in a claim: what is read is what was written, and reads back.
pub fn quantity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(bytes) = quantity::parse(text) else { return };
    assert!(i64::try_from(bytes.0).is_ok(), "{text:?} is {bytes}");
    assert_eq!(quantity::parse(&bytes.to_string()), Ok(bytes), "{text:?}");
    if let Some(near) = about(text) {
        let off = (as_float(bytes) - near).abs();
        assert!(
            off <= 1.0 + near * 1e-12,
            "{text:?} is about {near}, and was read as {bytes}"
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is compared with an approximation")]
fn as_float(bytes: Bytes) -> f64 {
    bytes.0 as f64
}

/// The same another way, less exact: as a floating-point number.
fn about(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c)));
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024_f64,
        "Mi" => 1024_f64.powi(2),
        "Gi" => 1024_f64.powi(3),
        "Ti" => 1024_f64.powi(4),
        "Pi" => 1024_f64.powi(5),
        "Ei" => 1024_f64.powi(6),
        exponent => format!("1{}", exponent.to_ascii_lowercase()).parse().ok()?,
    };
    match number.parse::<f64>().ok()? {
        // Times infinity it would be no number.
        0.0 => Some(0.0),
        number => Some(number * factor),
    }
}

/// The parameters of a StorageClass, a line for each: key, space, value. The first line is the name of the class.
///
/// Whatever passes the check names no group and no disk that could be an option of a command, or lead out of /dev.
pub fn class(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let name = lines.next().unwrap_or_default();
    let pairs = lines.filter_map(|line| line.split_once(' '));
    let parameters: BTreeMap<String, String> = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let mut class = StorageClass {
        provisioner: PROVISIONER.to_owned(),
        parameters: Some(parameters),
        ..StorageClass::default()
    };
    class.metadata.name = Some(name.to_owned());
    match ClassParameters::of(&class) {
        Ok(parameters) => check_parameters(&parameters),
        Err(errors) => {
            assert!(!errors.0.is_empty());
            for error in errors.0 {
                assert!(error.field.starts_with("parameters."), "{error}");
                assert!(!error.problem.is_empty(), "{error}");
            }
        }
    }
}

fn check_parameters(parameters: &ClassParameters) {
    let group = &parameters.volume_group;
    assert_eq!(check_volume_group_name(group), Ok(()));
    assert!(!group.starts_with('-') && !group.contains('/'), "{group:?}");
    assert!(is_below_dev(&device_path(group, "pvc-1")), "{group:?}");
    let labels = BTreeMap::from([("pool".to_owned(), "nvme".to_owned())]);
    for node in parameters.nodes.iter().flat_map(|nodes| &nodes.names) {
        assert!(parameters.disks_of(node, &labels).is_some(), "{node:?} is named");
    }
    for disk in parameters.nodes.iter().flat_map(|nodes| &nodes.disks) {
        match disk {
            DiskSelector::Path(path) => assert!(is_below_dev(path), "{path:?}"),
            DiskSelector::Model(model) => assert!(!model.trim().is_empty(), "{model:?}"),
        }
    }
}

/// Whether a path is below /dev as it stands, and one word without quotes or control characters.
fn is_below_dev(path: &str) -> bool {
    let parts = path.strip_prefix("/dev/").map(|rest| rest.split('/'));
    let plain = |c: char| c.is_ascii_graphic() && !"'\"`$;|&<>(){}[]*?!".contains(c);
    parts.is_some_and(|mut parts| parts.all(|part| !part.is_empty() && part != "." && part != ".."))
        && path.chars().all(plain)
}

/// A report of LVM: what is understood adds up, and what is reckoned from it does not overflow.
pub fn report(data: &[u8]) {
    let Ok(state) = quarry_manager::lvm::parse_report(data) else {
        return;
    };
    for group in &state.groups {
        assert_eq!(group.uuid.len(), 38, "{:?}", group.uuid);
        assert!(group.extent_size.bytes().0 > 0);
        for device in &group.physical_volumes {
            assert!(device.free <= device.size, "{device:?}");
        }
        let _ = state.problem_of(group);
        let _ = group.allocatable(&[]);
        for volume in &group.logical_volumes {
            assert!(group.volume_named(&volume.name).is_some());
            let _ = quarry_crds::tags::VolumeTags::parse(&volume.tags);
            let _ = group.extent_size.size_of(volume.extents);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Runs every kept input of a target; they were all found to pass once.
    fn replay(name: &str, target: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).expect("a corpus") {
            let path = entry.expect("an entry").path();
            target(&std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
            count += 1;
        }
        assert!(count > 5, "{count} inputs in {}", folder.display());
    }

    #[test]
    fn kept_quantities_hold() {
        replay("quantity", super::quantity);
    }

    #[test]
    fn kept_classes_hold() {
        replay("class", super::class);
    }

    #[test]
    fn kept_reports_hold() {
        replay("report", super::report);
    }

    #[test]
    fn kept_requests_to_filter_hold() {
        replay("filter", super::filter);
    }

    #[test]
    fn kept_requests_to_prioritize_hold() {
        replay("prioritize", super::prioritize);
    }

    #[test]
    fn kept_requests_to_preempt_hold() {
        replay("preempt", super::preempt);
    }
}
