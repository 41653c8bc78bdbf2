//! What one class has on each node, side by side: thousands of candidates are decided without following a pointer to each.
//! It says nothing that a [`Node`] does not say, and is kept up by the index.

use quarry_crds::extents::{Bytes, ExtentSize, Extents};
use quarry_crds::placement::{Offer, Standing};

use crate::index::Slot;
use crate::node::{Besides, Node};

/// One class on one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cell {
    standing: Standing,
    /// Its volume group, also where no volumes can be made now.
    group: Option<CellGroup>,
}

/// The volume group of a class on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellGroup {
    /// Its position among those of the node.
    at: u32,
    /// Position of its name on the board.
    name: u32,
    /// Size of one extent.
    pub extent_size: ExtentSize,
}

/// One class on every node.
#[derive(Debug, Default)]
pub struct Board {
    cells: Vec<Cell>,
    /// How many nodes have anything of the class.
    used: usize,
    /// Names of its volume groups: one, for nearly every class.
    names: Vec<Box<str>>,
}

impl CellGroup {
    /// Its position among those of the node.
    #[must_use]
    pub const fn at(self) -> usize {
        self.at as usize
    }

    /// What tells its name from other names on the board.
    #[must_use]
    pub const fn name(self) -> u32 {
        self.name
    }
}

impl Cell {
    /// What the class has here, less what is taken besides.
    #[must_use]
    pub fn standing(&self, besides: &Besides) -> Standing {
        match self.standing {
            Standing::Ready(offer) => Standing::Ready(Offer {
                free: offer.free.minus(besides.of(offer.group)),
                ..offer
            }),
            other => other,
        }
    }

    /// What the class has here, less as much of its volume group as `taken` says for its size of extents.
    #[must_use]
    pub fn standing_less(&self, taken: impl Fn(ExtentSize) -> Extents) -> Standing {
        match self.standing {
            Standing::Ready(offer) => Standing::Ready(Offer {
                free: offer.free.minus(taken(offer.extent_size)),
                ..offer
            }),
            other => other,
        }
    }

    /// The volume group.
    #[must_use]
    pub const fn group(&self) -> Option<CellGroup> {
        self.group
    }

    fn is_used(&self) -> bool {
        *self != Self::default()
    }
}

impl Board {
    /// The class on a node.
    #[must_use]
    pub fn cell(&self, slot: Slot) -> Cell {
        self.cells.get(slot.0).copied().unwrap_or_default()
    }

    /// The name of a volume group.
    #[must_use]
    pub fn name(&self, group: CellGroup) -> &str {
        self.names.get(group.name as usize).map_or("", |name| name)
    }

    /// Puts what a node says of the class now.
    pub(crate) fn put(&mut self, slot: Slot, node: &Node, class: &str) {
        let group = node.position_of(class).map(|at| {
            let group = &node.groups()[at];
            CellGroup {
                at: u32::try_from(at).unwrap_or(u32::MAX),
                name: self.name_of(&group.name),
                extent_size: group.extent_size,
            }
        });
        let standing = node.standing(class);
        let cell = Cell { standing, group };
        if self.cells.len() <= slot.0 {
            if !cell.is_used() {
                return;
            }
            self.cells.resize(slot.0 + 1, Cell::default());
        }
        let before = std::mem::replace(&mut self.cells[slot.0], cell);
        self.used = self.used + usize::from(cell.is_used()) - usize::from(before.is_used());
    }

    fn name_of(&mut self, name: &str) -> u32 {
        let at = self.names.iter().position(|known| **known == *name).unwrap_or_else(|| {
            self.names.push(name.into());
            self.names.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    /// Whether no node has anything of the class.
    #[must_use]
    pub(crate) const fn is_empty(&self) -> bool {
        self.used == 0
    }
}

/// What is to be kept free of each group of a node, for one claim after another.
impl Besides {
    /// Adds a claim of a class that stands like this.
    pub(crate) fn add_claim(&mut self, cell: Cell, size: Bytes) {
        if let Some(group) = cell.group() {
            self.add(group.at(), group.extent_size.holding(size));
        }
    }
}

/// Nothing of a class anywhere: for classes that no node has.
pub static NOWHERE: Board = Board {
    cells: Vec::new(),
    used: 0,
    names: Vec::new(),
};

const _: () = assert!(size_of::<Cell>() <= 64, "a cell is more than a line of the cache");
