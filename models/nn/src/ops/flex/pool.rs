//! The threads that kernels share their work with.
//!
//! A token of a small model is some hundred operators of a few dozen microseconds. To wake a thread
//! for each of them costs as much as the operator, so the threads of this pool look for work for a
//! while before they sleep, as those of OpenMP do. The caller takes part, and no thread but the
//! caller is waited for unless it has begun.
//!
//! As many threads as rayon's pool has, which is what `kiln --threads` sets.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a thread looks for work before it sleeps: longer than what lies between two operators
/// of a step, shorter than what anybody would notice of a machine that is idle.
const PATIENCE: Duration = Duration::from_micros(200);

/// The gate: how many jobs there were (the upper half), whether the last one may still be joined,
/// and how many threads are at it.
const JOB: u64 = 1 << 32;
const OPEN: u64 = 1 << 31;

thread_local! {
    /// Whether this thread runs a task: what it calls runs on it alone.
    static BUSY: Cell<bool> = const { Cell::new(false) };
    /// The pool of a test.
    #[cfg(test)]
    static CHOSEN: std::cell::RefCell<Option<Arc<Pool>>> = const { std::cell::RefCell::new(None) };
}

/// Threads that run one job at a time.
pub(in crate::ops) struct Pool {
    threads: usize,
    shared: Arc<Shared>,
    /// Callers take turns.
    turn: Mutex<()>,
}

/// What all threads see.
struct Shared {
    gate: Apart<AtomicU64>,
    /// The next task.
    next: Apart<AtomicUsize>,
    /// Written by the caller before the gate opens, read by those that went through it.
    job: UnsafeCell<Job>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    alarm: Condvar,
    over: AtomicBool,
}

/// A line of the cache of its own.
#[repr(align(128))]
struct Apart<T>(T);

/// What is to be done, `count` times.
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    count: usize,
}

// SAFETY: a job is read only by threads that are counted in the gate, and its caller waits for them
// before the task goes out of scope; the task itself is `Sync`.
unsafe impl Send for Shared {}
// SAFETY: as above; everything else in it is made for sharing.
unsafe impl Sync for Shared {}

/// Calls `task` with every number below `count`, on all threads of the pool; in no order.
///
/// # Panics
/// When a task does.
pub(super) fn each(count: usize, task: impl Fn(usize) + Sync) {
    if count < 2 || BUSY.get() {
        return (0..count).for_each(task);
    }
    with_pool(|pool| pool.each(count, &task));
}

/// Threads that work at a time, the caller's among them. A task has but its own.
pub(super) fn threads() -> usize {
    if BUSY.get() {
        return 1;
    }
    with_pool(|pool| pool.threads)
}

/// Calls `task` with pieces of `x`, each with its number; all but the last are of `size` elements.
pub(super) fn chunks_mut<T: Send>(x: &mut [T], size: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let len = x.len();
    let start = super::memory::Raw(x.as_mut_ptr());
    each(len.div_ceil(size), |i| {
        let first = i * size;
        let count = size.min(len - first);
        // SAFETY: within the slice, which is borrowed until all tasks have ended, and the pieces
        // of two tasks are apart.
        let piece = unsafe { std::slice::from_raw_parts_mut(start.get().add(first), count) };
        task(i, piece);
    });
}

/// Calls `run` with every one of `tasks`.
pub(super) fn consume<T: Send>(tasks: Vec<T>, run: impl Fn(T) + Sync) {
    let tasks: Vec<Mutex<Option<T>>> = tasks.into_iter().map(|t| Mutex::new(Some(t))).collect();
    each(tasks.len(), |i| {
        if let Some(task) = lock(&tasks[i]).take() {
            run(task);
        }
    });
}

fn with_pool<T>(f: impl FnOnce(&Pool) -> T) -> T {
    #[cfg(test)]
    if let Some(pool) = CHOSEN.with_borrow(Clone::clone) {
        return f(&pool);
    }
    static POOL: OnceLock<Pool> = OnceLock::new();
    f(POOL.get_or_init(|| Pool::new(rayon::current_num_threads())))
}

impl Pool {
    /// A pool whose callers are one of its threads.
    pub(in crate::ops) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            gate: Apart(AtomicU64::new(0)),
            next: Apart(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job {
                task: &|_| {},
                count: 0,
            }),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
            over: AtomicBool::new(false),
        });
        // A machine that gives fewer threads has fewer.
        let started = (1..threads).filter(|i| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("kiln-kernel-{i}"))
                .spawn(move || shared.work())
                .is_ok()
        });
        Self {
            threads: 1 + started.count(),
            shared,
            turn: Mutex::new(()),
        }
    }

    /// Has everything that `f` calls on this thread run in this pool.
    #[cfg(test)]
    pub(in crate::ops) fn install<T>(self, f: impl FnOnce() -> T) -> T {
        let before = CHOSEN.replace(Some(Arc::new(self)));
        let out = f();
        CHOSEN.set(before);
        out
    }

    fn each(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.threads == 1 {
            return (0..count).for_each(task);
        }
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: the lifetime is left out, and only that; nobody reads the job once this function
        // has seen everyone leave.
        let task = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(task)
        };
        // SAFETY: the gate is closed and nobody is behind it.
        unsafe { *shared.job.get() = Job { task, count } };
        shared.next.0.store(0, Relaxed);
        let before = shared.gate.0.load(Relaxed);
        let opened = (before & !(JOB - 1)).wrapping_add(JOB) | OPEN;
        shared.gate.0.store(opened, SeqCst);
        if shared.sleepers.load(SeqCst) > 0 {
            // With the lock: who is about to sleep either sees the gate or hears the alarm.
            drop(lock(&shared.bed));
            shared.alarm.notify_all();
        }
        shared.take_part();
        shared.gate.0.fetch_and(!OPEN, AcqRel);
        let mut spins = 0u32;
        while shared.gate.0.load(Acquire) & (OPEN - 1) != 0 {
            spins += 1;
            match spins % 4096 {
                // Somebody else may have the processor that the last task waits for.
                0 => std::thread::yield_now(),
                _ => spin_loop(),
            }
        }
        let panic = lock(&shared.panic).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.over.store(true, SeqCst);
        drop(lock(&self.shared.bed));
        self.shared.alarm.notify_all();
    }
}

impl Shared {
    /// The life of a thread.
    fn work(&self) {
        let mut seen = 0;
        while let Some(gate) = self.wait(seen) {
            seen = gate / JOB;
            let joined = self
                .gate
                .0
                .compare_exchange(gate, gate + 1, AcqRel, Relaxed);
            match joined {
                Ok(_) => {
                    self.take_part();
                    self.gate.0.fetch_sub(1, AcqRel);
                }
                // Another thread joined or left in between, or the job is over: look again.
                Err(_) => seen = seen.wrapping_sub(1),
            }
        }
    }

    /// Waits for an open job that is not number `seen`; `None` when there will be none.
    fn wait(&self, seen: u64) -> Option<u64> {
        let fresh = || {
            let gate = self.gate.0.load(SeqCst);
            (gate & OPEN != 0 && gate / JOB != seen).then_some(gate)
        };
        let start = Instant::now();
        loop {
            for _ in 0..256 {
                if let Some(gate) = fresh() {
                    return Some(gate);
                }
                spin_loop();
            }
            if start.elapsed() > PATIENCE {
                break;
            }
        }
        let mut bed = lock(&self.bed);
        self.sleepers.fetch_add(1, SeqCst);
        let gate = loop {
            if self.over.load(SeqCst) {
                break None;
            }
            if let Some(gate) = fresh() {
                break Some(gate);
            }
            bed = self.alarm.wait(bed).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, SeqCst);
        gate
    }

    /// Takes tasks until there are none.
    fn take_part(&self) {
        // SAFETY: the caller of `each`, or counted in the gate: the job stays until this returns.
        let (job, task) = unsafe {
            let job = *self.job.get();
            (job, &*job.task)
        };
        BUSY.set(true);
        let tasks = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.0.fetch_add(1, Relaxed);
                if i >= job.count {
                    break;
                }
                task(i);
            }
        }));
        BUSY.set(false);
        if let Err(panic) = tasks {
            // The others end soon: nothing is left to take.
            self.next.0.store(job.count, Relaxed);
            lock(&self.panic).get_or_insert(panic);
        }
    }
}

/// Nothing is done under these locks that could leave anything half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_however_many_threads_there_are() {
        for threads in [1, 2, 5] {
            Pool::new(threads).install(|| {
                assert_eq!(super::threads(), threads);
                for count in [0, 1, 2, 3, 17, 1000] {
                    let ran: Vec<AtomicUsize> = (0..count).map(|_| 0.into()).collect();
                    each(count, |i| {
                        ran[i].fetch_add(1, Relaxed);
                    });
                    assert!(ran.iter().all(|n| n.load(Relaxed) == 1));
                }
            });
        }
    }

    #[test]
    fn pieces_are_apart_and_whole() {
        Pool::new(3).install(|| {
            let mut x = vec![0; 103];
            chunks_mut(&mut x, 10, |i, piece| {
                assert_eq!(piece.len(), if i == 10 { 3 } else { 10 });
                piece.iter_mut().for_each(|v| *v += i + 1);
            });
            assert!(x.iter().enumerate().all(|(at, v)| *v == at / 10 + 1));
        });
    }

    #[test]
    fn a_task_that_uses_the_pool_runs_alone_and_a_sleeper_is_woken() {
        Pool::new(2).install(|| {
            let ran = AtomicUsize::new(0);
            for _ in 0..3 {
                std::thread::sleep(PATIENCE * 4);
                each(4, |_| {
                    assert_eq!(super::threads(), 1);
                    each(4, |_| {
                        ran.fetch_add(1, Relaxed);
                    });
                });
            }
            assert_eq!(ran.into_inner(), 48);
        });
    }

    #[test]
    fn a_panic_is_the_callers_and_the_pool_goes_on() {
        Pool::new(2).install(|| {
            let failed = catch_unwind(|| each(8, |i| assert_ne!(i, 3, "the third")));
            assert!(failed.is_err());
            let ran = AtomicUsize::new(0);
            each(8, |_| {
                ran.fetch_add(1, Relaxed);
            });
            assert_eq!(ran.into_inner(), 8);
        });
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2);
        let ran = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.each(5, &|_| {
                            ran.fetch_add(1, Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(ran.into_inner(), 4 * 200 * 5);
    }
}
