//! Prints the CustomResourceDefinition that `deploy/` ships.

fn main() {
    print!("{}", quarry_crds::node_local_storage::manifest());
}
