//! Who owns which block of the paged KV cache, and which free block still holds what a later prompt
//! may take. Pure bookkeeping: the tensors are the executor's.

use crate::BlockHash;
use kiln_registry::{Error, Result};
use std::collections::{BTreeMap, HashMap};

/// Hands out blocks, counts their owners, and takes them back.
///
/// A block whose content has a name keeps it when its last owner gives it back; it is handed out anew
/// only when no other is free, the one longest out of use first.
#[derive(Debug, Clone)]
pub struct BlockAllocator {
    blocks: Vec<Block>,
    /// Free blocks without a name.
    blank: Vec<u32>,
    /// Free blocks with a name, by when they came free.
    cached: BTreeMap<u64, u32>,
    names: HashMap<BlockHash, u32>,
    clock: u64,
    block_size: usize,
}

#[derive(Debug, Clone, Default)]
struct Block {
    owners: u32,
    name: Option<BlockHash>,
    /// Its key in `cached` while it is free and has a name.
    freed: u64,
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
            blocks: vec![Block::default(); blocks],
            blank: (0..count).rev().collect(),
            cached: BTreeMap::new(),
            names: HashMap::new(),
            clock: 0,
            block_size,
        })
    }

    /// Blocks that nobody owns, those with a name included.
    pub fn free_blocks(&self) -> usize {
        self.blank.len() + self.cached.len()
    }

    /// Blocks that nobody owns and whose content can be taken.
    pub fn cached_blocks(&self) -> usize {
        self.cached.len()
    }

    /// Blocks in all.
    pub fn total_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Tokens of one block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that `tokens` take.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// How many of these names, from the first on, are there.
    pub fn find(&self, names: &[BlockHash]) -> usize {
        let there = names.iter().take_while(|n| self.names.contains_key(n));
        there.count()
    }

    /// A table of the blocks of these names and of new ones until it holds `tokens`. `None`, and
    /// nothing is changed, when a name is not there or too few blocks are free.
    #[must_use]
    pub fn take(&mut self, names: &[BlockHash], tokens: usize) -> Option<BlockTable> {
        let found = names.iter().map(|name| self.names.get(name).copied());
        let found: Vec<u32> = found.collect::<Option<_>>()?;
        let owned = |block: &&u32| self.blocks[**block as usize].owners == 0;
        let woken = found.iter().filter(owned).count();
        let new = self.blocks_for(tokens).saturating_sub(found.len());
        if new + woken > self.free_blocks() {
            return None;
        }
        for number in &found {
            let block = &mut self.blocks[*number as usize];
            if block.owners == 0 {
                self.cached.remove(&block.freed);
            }
            block.owners += 1;
        }
        let mut table = BlockTable { blocks: found };
        let grown = self.grow(&mut table, tokens);
        debug_assert!(grown, "counted before");
        Some(table)
    }

    /// Grows a table until it holds `tokens`. Returns `false`, and changes nothing, when there
    /// are too few free blocks: the scheduler then waits or preempts.
    #[must_use]
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = self.blocks_for(tokens).saturating_sub(table.blocks.len());
        if missing > self.free_blocks() {
            return false;
        }
        for _ in 0..missing {
            let Some(number) = self.hand_out() else {
                return false;
            };
            table.blocks.push(number);
        }
        true
    }

    fn hand_out(&mut self) -> Option<u32> {
        let number = match self.blank.pop() {
            Some(number) => number,
            None => self.cached.pop_first()?.1,
        };
        self.forget(number);
        self.blocks[number as usize].owners = 1;
        Some(number)
    }

    /// Says what the block at a place of a table holds, now that all its positions have run. Where
    /// another block has that name already, this one stays without.
    pub fn name(&mut self, table: &BlockTable, place: usize, name: BlockHash) {
        let Some(number) = table.blocks.get(place) else {
            return;
        };
        let block = &mut self.blocks[*number as usize];
        if block.name.is_none() && !self.names.contains_key(&name) {
            block.name = Some(name);
            self.names.insert(name, *number);
        }
    }

    /// Takes a table back; a block is free when its last owner has given it back.
    pub fn release(&mut self, table: BlockTable) {
        // The end of a sequence is of less use than its beginning: it comes free first.
        for number in table.blocks.into_iter().rev() {
            let block = &mut self.blocks[number as usize];
            block.owners = block.owners.saturating_sub(1);
            if block.owners > 0 {
                continue;
            }
            if block.name.is_some() {
                self.clock += 1;
                block.freed = self.clock;
                self.cached.insert(self.clock, number);
            } else {
                self.blank.push(number);
            }
        }
    }

    /// Takes back a table whose content is not to be trusted: nobody takes its blocks any more.
    pub fn discard(&mut self, table: BlockTable) {
        for number in &table.blocks {
            self.forget(*number);
        }
        self.release(table);
    }

    /// Forgets all content: the tensors are others now.
    pub fn forget_all(&mut self) {
        for block in &mut self.blocks {
            block.name = None;
        }
        self.names.clear();
        // As at the start, the lowest number first.
        let free = std::mem::take(&mut self.cached).into_values();
        self.blank.extend(free);
        self.blank.sort_unstable_by(|a, b| b.cmp(a));
    }

    fn forget(&mut self, number: u32) {
        if let Some(name) = self.blocks[number as usize].name.take() {
            self.names.remove(&name);
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

    fn names(n: u32) -> Vec<BlockHash> {
        let chain = (0..n).scan(BlockHash::root(0, &[]), |last, token| {
            *last = last.next(&[token; 4], &[]);
            Some(*last)
        });
        chain.collect()
    }

    #[test]
    fn named_blocks_are_shared_and_outlive_their_owners() {
        let mut allocator = BlockAllocator::new(4, 4).unwrap();
        let names = names(3);
        let table = allocator.take(&[], 8).unwrap();
        allocator.name(&table, 0, names[0]);
        allocator.name(&table, 1, names[1]);
        assert_eq!(allocator.find(&names), 2);
        let shared = allocator.take(&names[..2], 12).unwrap();
        assert_eq!(shared.blocks()[..2], *table.blocks());
        assert_eq!(allocator.free_blocks(), 1);
        assert!(allocator.take(&names[..1], 12).is_none(), "two are missing");
        assert!(
            allocator.take(&names, 12).is_none(),
            "the third is not there"
        );
        allocator.release(table);
        assert_eq!(allocator.free_blocks(), 1, "both have an owner still");
        allocator.release(shared);
        assert_eq!((allocator.free_blocks(), allocator.cached_blocks()), (4, 2));

        // Blank blocks go first, then the end of what came free.
        let other = allocator.take(&[], 12).unwrap();
        assert_eq!(allocator.find(&names), 1);
        let again = allocator.take(&names[..1], 4).unwrap();
        assert_eq!(allocator.free_blocks(), 0);
        assert!(allocator.take(&names[..1], 5).is_none());
        allocator.release(other);
        allocator.discard(again);
        assert_eq!((allocator.find(&names), allocator.free_blocks()), (0, 4));
    }

    #[test]
    fn what_is_forgotten_is_not_found() {
        let mut allocator = BlockAllocator::new(2, 4).unwrap();
        let names = names(2);
        let table = allocator.take(&[], 8).unwrap();
        allocator.name(&table, 0, names[0]);
        allocator.forget_all();
        assert_eq!(allocator.find(&names), 0);
        allocator.name(&table, 0, names[0]);
        allocator.release(table);
        allocator.forget_all();
        assert_eq!((allocator.free_blocks(), allocator.cached_blocks()), (2, 0));
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
