//! The scheduler by itself, over made-up sequences: what it plans is checked against a model of the
//! cache that knows what every slot holds.

use super::*;
use kiln_registry::NamedTensors;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const BLOCK: usize = 4;

fn config(tokens: usize, seqs: usize, queue: usize) -> SchedulerConfig {
    SchedulerConfig {
        max_batched_tokens: tokens,
        max_num_seqs: seqs,
        max_queue: queue,
        max_queue_tokens: usize::MAX,
        max_encoder_tokens: usize::MAX,
        policy: Policy::Fcfs,
    }
}

fn over(config: SchedulerConfig, blocks: usize) -> Scheduler {
    Scheduler::new(config, BlockAllocator::new(blocks, BLOCK).unwrap()).unwrap()
}

fn scheduler(tokens: usize, seqs: usize, queue: usize, blocks: usize) -> Scheduler {
    over(config(tokens, seqs, queue), blocks)
}

fn plain(prompt: usize, new: usize) -> Arrival {
    Arrival {
        prompt,
        new,
        ..Arrival::default()
    }
}

fn room(prompt_tokens: usize) -> Room<'static> {
    Room {
        prompt_tokens,
        encoder: true,
        encoded: &|_, _, _| false,
    }
}

fn plan(s: &mut Scheduler) -> Vec<Chunk> {
    s.schedule(room(usize::MAX))
}

/// The names of a text's full blocks.
fn names(tokens: &[u32]) -> Vec<BlockHash> {
    let blocks = tokens.chunks_exact(BLOCK);
    let chain = blocks.scan(BlockHash::root(0, &[]), |last, block| {
        *last = last.next(block, &[]);
        Some(*last)
    });
    chain.collect()
}

fn named(tokens: &[u32], new: usize) -> Arrival {
    Arrival {
        names: names(tokens),
        ..plain(tokens.len(), new)
    }
}

#[test]
fn a_long_prompt_runs_in_chunks_and_samples_once() {
    let mut s = scheduler(4, 2, 8, 8);
    s.add(plain(10, 1)).unwrap();
    let mut seen = Vec::new();
    loop {
        let step = plan(&mut s);
        s.advance(&step);
        seen.extend(step.iter().map(|c| (c.start, c.len, c.samples)));
        if step[0].samples {
            break;
        }
    }
    assert_eq!(seen, [(0, 4, false), (4, 4, false), (8, 2, true)]);
}

#[test]
fn the_newest_gives_way_and_starts_anew() {
    let mut s = scheduler(64, 4, 8, 2);
    let old = s.add(plain(4, 4)).unwrap();
    let new = s.add(plain(4, 4)).unwrap();
    let step = plan(&mut s);
    assert_eq!(step.len(), 2);
    s.advance(&step);
    s.append(old, None).unwrap();
    s.append(new, None).unwrap();
    let step = plan(&mut s);
    assert_eq!(step.iter().map(|c| c.id).collect::<Vec<_>>(), [old]);
    assert_eq!((s.preemptions(), s.waiting()), (1, 1));
    assert_eq!(
        (s.take_preempted(), s.take_preempted()),
        (vec![new], vec![])
    );
    assert!(s.remove(old));
    let step = plan(&mut s);
    assert_eq!((step[0].id, step[0].start, step[0].len), (new, 0, 5));
}

#[test]
fn what_can_never_run_and_what_is_too_much_is_refused() {
    let mut s = scheduler(8, 1, 1, 2);
    assert!(s.add(plain(0, 1)).is_err());
    let error = s.add(plain(5, 4)).unwrap_err();
    assert!(matches!(error, Error::ContextLength { .. }));
    assert!(s.add(plain(usize::MAX, 4)).is_err());
    let id = s.add(plain(4, 4)).unwrap();
    assert!(matches!(s.add(plain(4, 4)), Err(Error::Overloaded(_))));
    assert!(s.append(id, None).is_err(), "it waits");
    assert!(s.remove(id) && !s.remove(id));

    let mut s = over(
        SchedulerConfig {
            max_queue_tokens: 6,
            ..config(8, 1, 9)
        },
        2,
    );
    s.add(plain(8, 0)).unwrap();
    assert!(matches!(s.add(plain(1, 1)), Err(Error::Overloaded(_))));
}

/// Streams go on at a token a step, however long the prompts are that come.
#[test]
fn running_streams_do_not_wait_for_prompts() {
    let mut s = scheduler(64, 8, 8, 64);
    let plan = |s: &mut Scheduler| s.schedule(room(3));
    let stream = s.add(plain(4, 40)).unwrap();
    let step = plan(&mut s);
    assert_eq!(step[0].len, 4, "alone it takes all");
    s.advance(&step);
    s.append(stream, None).unwrap();
    let long = s.add(plain(20, 1)).unwrap();
    let short = s.add(plain(2, 9)).unwrap();
    let mut seen = vec![];
    for _ in 0..7 {
        let step = plan(&mut s);
        assert_eq!((step[0].id, step[0].len), (stream, 1));
        assert!(step.iter().map(|c| c.len).sum::<usize>() <= 5);
        seen.push(step.iter().map(|c| (c.id, c.len)).collect::<Vec<_>>());
        s.advance(&step);
        for chunk in step.iter().filter(|c| c.samples) {
            if chunk.id == long {
                s.remove(long);
            } else {
                s.append(chunk.id, None).unwrap();
            }
        }
    }
    assert_eq!(seen[0], [(stream, 1), (long, 3)]);
    // Beside the long prompt nothing starts that can't end; behind its last tokens the short one does.
    assert!(seen[..6].iter().all(|step| step.len() == 2), "{seen:?}");
    assert_eq!(seen[6], [(stream, 1), (long, 2), (short, 1)]);
    assert!(plan(&mut s).iter().any(|c| c.id == short && c.samples));
}

#[test]
fn a_known_beginning_is_not_computed_again() {
    let mut s = scheduler(64, 4, 8, 16);
    let text: Vec<u32> = (0..11).collect();
    let first = s.add(named(&text, 4)).unwrap();
    let second = s.add(named(&text, 4)).unwrap();
    // The second waits for what the first computes now.
    let step = plan(&mut s);
    assert_eq!(step.iter().map(|c| c.id).collect::<Vec<_>>(), [first]);
    s.advance(&step);
    s.append(first, None).unwrap();
    let step = plan(&mut s);
    let got = step.iter().find(|c| c.id == second).unwrap();
    assert_eq!((got.start, got.len, got.samples), (8, 3, true));
    assert_eq!(s.prefix_lookups(), (22, 8));
    s.advance(&step);
    s.remove(first);
    s.remove(second);
    assert_eq!((s.free_blocks(), s.cached_blocks()), (16, 2));

    // A text that is in the cache to its last token runs that token's block again.
    let third = s.add(named(&text[..8], 4)).unwrap();
    let step = plan(&mut s);
    assert_eq!((step[0].id, step[0].start, step[0].len), (third, 4, 4));
    s.discard(third);
    assert_eq!((s.free_blocks(), s.cached_blocks()), (16, 1));
    s.forget_cached();
    assert_eq!((s.free_blocks(), s.cached_blocks()), (16, 0));
}

#[test]
fn a_preempted_sequence_takes_up_what_is_left_of_its_own() {
    let mut s = scheduler(64, 4, 8, 6);
    let old = s.add(plain(4, 16)).unwrap();
    let text: Vec<u32> = (0..12).collect();
    let new = s.add(named(&text, 8)).unwrap();
    for _ in 0..5 {
        let step = plan(&mut s);
        s.advance(&step);
        for chunk in &step {
            s.append(chunk.id, None).unwrap();
        }
    }
    // Six blocks: the old one needs its third, the new one has four.
    let step = plan(&mut s);
    assert_eq!((s.preemptions(), step.len()), (1, 1));
    s.remove(old);
    let step = plan(&mut s);
    assert_eq!((step[0].id, step[0].start), (new, 12));
}

#[test]
fn priority_goes_first_and_what_waits_long_goes_before_it() {
    let by_priority = SchedulerConfig {
        policy: Policy::Priority,
        ..config(8, 1, 4096)
    };
    let mut s = over(by_priority, 8);
    let arrive = |s: &mut Scheduler, priority| {
        s.add(Arrival {
            priority,
            ..plain(4, 0)
        })
        .unwrap()
    };
    let low = arrive(&mut s, 5);
    let high = arrive(&mut s, -5);
    let same = arrive(&mut s, -5);
    let run = |s: &mut Scheduler| {
        let step = plan(s);
        s.advance(&step);
        s.remove(step[0].id);
        step[0].id
    };
    assert_eq!((run(&mut s), run(&mut s)), (high, same));
    for _ in 0..2 * PATIENCE {
        arrive(&mut s, -5);
        if run(&mut s) == low {
            return;
        }
    }
    panic!("it starves");
}

fn picture(name: &str, range: std::ops::Range<usize>) -> ItemSpan {
    ItemSpan {
        rows: range.len(),
        range,
        content: ContentHash::of(&[name], &NamedTensors::new()),
    }
}

#[test]
fn a_step_encodes_no_more_than_its_budget() {
    let mut s = over(
        SchedulerConfig {
            max_encoder_tokens: 6,
            ..config(64, 8, 8)
        },
        64,
    );
    let mut ask = |name: &str| {
        s.add(Arrival {
            items: [picture(name, 2..8)].into(),
            ..plain(10, 1)
        })
        .unwrap()
    };
    let (a, b, again) = (ask("a"), ask("b"), ask("a"));
    let step = plan(&mut s);
    let seen: Vec<_> = step.iter().map(|c| (c.id, c.len)).collect();
    // One picture; the text before the next one; what shares the first one.
    assert_eq!(seen, [(a, 10), (b, 2), (again, 10)]);
    s.advance(&step);
    assert_eq!(s.partial(), Some((b, 2)));
    let step = plan(&mut s);
    assert!(step.iter().any(|c| (c.id, c.start, c.len) == (b, 2, 8)));
}

proptest! {
    /// Every sequence finishes, each chunk finds its whole history in its own blocks, whoever
    /// computed it, and no bound is passed, whatever the arrivals, cancellations, failures and sizes.
    /// Texts are drawn from few, so that beginnings are shared often, and blocks are few.
    #[test]
    fn every_history_is_whole_and_every_block_comes_back(
        budget in 1usize..12,
        seqs in 1usize..5,
        prefill in 1usize..12,
        encoder in 0usize..8,
        pieces in 0usize..4,
        priority in any::<bool>(),
        shares in any::<bool>(),
        work in prop::collection::vec(
            (0u32..3, 1usize..20, 1usize..12, 0usize..6, 0usize..4, -2i32..3), 1..12),
    ) {
        let blocks = 8;
        let mut s = over(SchedulerConfig {
            max_encoder_tokens: encoder,
            policy: if priority { Policy::Priority } else { Policy::Fcfs },
            ..config(budget, seqs, 100)
        }, blocks);
        let mut arrivals: VecDeque<_> = work.into();
        // What each slot holds: the text up to and including its token.
        let mut slots: Vec<Vec<u32>> = vec![vec![]; blocks * BLOCK];
        let mut left: BTreeMap<SequenceId, (Vec<u32>, usize, usize)> = BTreeMap::new();
        let mut rows_there: HashSet<(SequenceId, usize)> = HashSet::new();
        // Who waits for the encoder, and for how many steps.
        let mut held_back: Vec<SequenceId> = vec![];
        let mut busy = 0;
        let mut steps = 0;
        while !arrivals.is_empty() || !left.is_empty() {
            if let Some((text, prompt, new, delay, fate, priority)) = arrivals.front_mut() {
                if *delay > 0 {
                    *delay -= 1;
                } else {
                    // Texts begin alike and part at some place.
                    let text: Vec<u32> = (0..*prompt as u32)
                        .map(|p| if p < 6 * *text + 3 { p } else { p + 100 * *text })
                        .collect();
                    let items: Arc<[ItemSpan]> = match *prompt > 5 {
                        true => [picture("p", 1..4), picture(&format!("{text:?}"), 4..6)].into(),
                        false => [].into(),
                    };
                    let arrival = Arrival {
                        names: if shares { names(&text) } else { vec![] },
                        priority: *priority,
                        items,
                        ..plain(*prompt, *new)
                    };
                    left.insert(s.add(arrival).unwrap(), (text, *new, *fate));
                    arrivals.pop_front();
                }
            }
            if busy > 0 {
                busy -= 1;
            } else {
                rows_there.extend(held_back.drain(..).flat_map(|id| [(id, 0), (id, 1)]));
            }
            let there = |id, at, _: &ContentHash| rows_there.contains(&(id, at));
            let mut step = s.schedule(Room { encoder: busy == 0, encoded: &there, ..room(prefill) });
            let lacks = |c: &Chunk| left[&c.id].0.len() > 5 && c.start < 6 && c.start + c.len > 1
                && !rows_there.contains(&(c.id, 0));
            prop_assert!(busy == 0 || !step.iter().any(lacks), "the encoder is at work");
            // Beside streams the encoder takes a few steps, and who needs it is left out of this one.
            if pieces > 0 && step.iter().any(|c| c.samples && c.len == 1) {
                let lacking: Vec<_> = step.extract_if(.., |c| lacks(c)).map(|c| c.id).collect();
                if !lacking.is_empty() {
                    (held_back, busy) = (lacking, pieces);
                }
            }
            prop_assert!(step.iter().map(|c| c.len).sum::<usize>() <= budget);
            prop_assert!(s.running() <= seqs);
            for c in &step {
                let (text, ..) = &left[&c.id];
                for position in c.start..c.start + c.len {
                    let slot = c.blocks[position / BLOCK] as usize * BLOCK + position % BLOCK;
                    slots[slot] = text[..=position].to_vec();
                }
                rows_there.extend([(c.id, 0), (c.id, 1)]);
            }
            for c in &step {
                let (text, ..) = &left[&c.id];
                for position in 0..c.start + c.len {
                    let slot = c.blocks[position / BLOCK] as usize * BLOCK + position % BLOCK;
                    prop_assert_eq!(&slots[slot][..], &text[..=position], "a wrong history");
                }
            }
            s.advance(&step);
            for c in step.iter().filter(|c| c.samples) {
                let (text, new, fate) = left.get_mut(&c.id).unwrap();
                if *new == 1 || (*fate == 1 && *new == 3) {
                    left.remove(&c.id);
                    prop_assert!(s.remove(c.id));
                } else if *fate == 2 && *new == 3 {
                    left.remove(&c.id);
                    s.discard(c.id);
                } else {
                    *new -= 1;
                    text.push(7);
                    let full = text.len() % BLOCK == 0 && shares;
                    let name = full.then(|| *names(text).last().unwrap());
                    s.append(c.id, name).unwrap();
                }
            }
            let partial = s.running.iter().filter(|q| q.remaining() > 1).count();
            prop_assert!(partial <= 1 + held_back.len(), "{partial} prompts in their midst");
            steps += 1;
            prop_assert!(steps < 20_000, "it does not come to an end");
        }
        prop_assert_eq!(s.free_blocks(), blocks);
    }
}
