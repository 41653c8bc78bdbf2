//! What stands in front of LVM on the nodes while [`quarry_e2e::bad_lvm`] runs.

fn main() -> anyhow::Result<std::process::ExitCode> {
    quarry_bad_lvm::run()
}
