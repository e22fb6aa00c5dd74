//! Who owns which block of the paged KV cache. Pure bookkeeping: the tensors are the executor's.

use kiln_registry::{Error, Result};

/// Hands out blocks, counts their owners, and takes them back.
#[derive(Debug, Clone)]
pub struct BlockAllocator {
    owners: Vec<u32>,
    free: Vec<u32>,
    block_size: usize,
}

/// The blocks of one sequence, in the order of its positions.
///
/// It does not free itself: give it back with [`BlockAllocator::release`].
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "a dropped table leaks its blocks"]
pub struct BlockTable {
    blocks: Vec<u32>,
}

impl BlockTable {
    /// The block numbers.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

impl BlockAllocator {
    /// An allocator of `blocks` free blocks of `block_size` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when either is 0, or there are more blocks than a `u32` numbers.
    pub fn new(blocks: usize, block_size: usize) -> Result<Self> {
        let count = u32::try_from(blocks).map_err(|_| {
            Error::invalid(format!("{blocks} KV blocks are more than can be numbered"))
        })?;
        if count == 0 || block_size == 0 {
            return Err(Error::invalid(
                "the KV cache needs at least one block of one token",
            ));
        }
        // The lowest number is handed out first, so that runs are alike.
        Ok(Self {
            owners: vec![0; blocks],
            free: (0..count).rev().collect(),
            block_size,
        })
    }

    /// Blocks that nobody owns.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// Blocks in all.
    pub fn total_blocks(&self) -> usize {
        self.owners.len()
    }

    /// Tokens of one block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that `tokens` take.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Grows a table until it holds `tokens`. Returns `false`, and changes nothing, when there
    /// are too few free blocks: the scheduler then waits or preempts.
    #[must_use]
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = self.blocks_for(tokens).saturating_sub(table.blocks.len());
        if missing > self.free.len() {
            return false;
        }
        for block in self
            .free
            .split_off(self.free.len() - missing)
            .into_iter()
            .rev()
        {
            self.owners[block as usize] = 1;
            table.blocks.push(block);
        }
        true
    }

    /// A second table that shares the blocks which `tokens` fill to the last position. Full
    /// blocks are never written again, so no copy is needed.
    pub fn share(&mut self, table: &BlockTable, tokens: usize) -> BlockTable {
        let full = (tokens / self.block_size).min(table.blocks.len());
        let blocks = table.blocks[..full].to_vec();
        for block in &blocks {
            self.owners[*block as usize] += 1;
        }
        BlockTable { blocks }
    }

    /// Takes a table back; a block is free when its last owner has given it back.
    pub fn release(&mut self, table: BlockTable) {
        for block in table.blocks.into_iter().rev() {
            let owners = &mut self.owners[block as usize];
            *owners = owners.saturating_sub(1);
            if *owners == 0 {
                self.free.push(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn growing_takes_only_what_is_missing() {
        let mut allocator = BlockAllocator::new(3, 4).unwrap();
        let mut table = BlockTable::default();
        assert!(allocator.grow(&mut table, 5));
        assert_eq!(table.blocks(), [0, 1]);
        assert!(allocator.grow(&mut table, 8));
        assert_eq!(allocator.free_blocks(), 1);
        assert!(!allocator.grow(&mut table, 13), "four blocks of three");
        assert_eq!(table.blocks().len(), 2, "a refusal changes nothing");
        allocator.release(table);
        assert_eq!(allocator.free_blocks(), 3);
    }

    #[test]
    fn only_full_blocks_are_shared() {
        let mut allocator = BlockAllocator::new(4, 4).unwrap();
        let mut table = BlockTable::default();
        assert!(allocator.grow(&mut table, 7));
        let shared = allocator.share(&table, 7);
        assert_eq!(shared.blocks(), &table.blocks()[..1]);
        allocator.release(table);
        assert_eq!(
            allocator.free_blocks(),
            3,
            "the shared block has an owner still"
        );
        allocator.release(shared);
        assert_eq!(allocator.free_blocks(), 4);
    }

    #[test]
    fn a_cache_of_nothing_is_refused() {
        assert!(BlockAllocator::new(0, 16).is_err());
        assert!(BlockAllocator::new(1, 0).is_err());
    }

    proptest! {
        /// Whatever is grown and released, no block has two tables and none is lost.
        #[test]
        fn blocks_are_neither_lost_nor_given_twice(steps in prop::collection::vec((0usize..4, 0usize..40), 1..60)) {
            let mut allocator = BlockAllocator::new(12, 4).unwrap();
            let mut tables: Vec<BlockTable> = (0..4).map(|_| BlockTable::default()).collect();
            for (which, tokens) in steps {
                if tokens == 0 || !allocator.grow(&mut tables[which], tokens) {
                    allocator.release(std::mem::take(&mut tables[which]));
                }
                let used: Vec<u32> = tables.iter().flat_map(|t| t.blocks().to_vec()).collect();
                prop_assert_eq!(used.iter().collect::<HashSet<_>>().len(), used.len());
                prop_assert_eq!(used.len() + allocator.free_blocks(), 12);
            }
            tables.into_iter().for_each(|table| allocator.release(table));
            prop_assert_eq!(allocator.free_blocks(), 12);
        }
    }
}
