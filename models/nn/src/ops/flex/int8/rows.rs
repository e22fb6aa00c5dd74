//! Rows of activations, rounded to whole numbers.

use super::super::{
    norm::Norm,
    pool,
    simd::{self, Isa, Kernel},
};
use crate::ops::quantized::{CLIP, HIGH, MOST, STEP};
use std::mem::MaybeUninit;

/// Rows of a tile of a matrix unit.
const TILE: usize = 16;
/// Elements below which one thread rounds all.
const CHUNK: usize = 1 << 15;
/// Adding it rounds to a whole number, ties to even, whose value is in the low bits then.
const ROUND: f32 = 12_582_912.0;

/// Rows of a tile on this machine at most: without a matrix unit, a block of registers.
fn most() -> usize {
    #[cfg(target_arch = "x86_64")]
    if !super::super::amx::available() {
        return super::vnni::TILE;
    }
    TILE
}

/// A step of a row, on the start of a line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Numbers([i8; STEP]);

/// Rows in tiles, of each its steps of K, of each step the rows. The last step is filled with zeros,
/// and so is the last tile.
pub(in super::super) struct Rows {
    numbers: Vec<Numbers>,
    /// Rows that there are.
    pub(in super::super) count: usize,
    /// Rows of a tile, as many in each.
    pub(in super::super) width: usize,
    pub(in super::super) tiles: usize,
    pub(in super::super) steps: usize,
    /// Of each row.
    pub(in super::super) scales: Vec<f32>,
    /// Of each row, the sum of its numbers.
    pub(in super::super) sums: Vec<i32>,
    /// Of each tile, the second numbers.
    seconds: Vec<Seconds>,
}

/// The second numbers of a tile.
#[derive(Default)]
struct Seconds {
    /// The steps that have some, in order.
    steps: Vec<u32>,
    /// Of each of these, the rows.
    numbers: Vec<Numbers>,
    /// Of each row, their sum.
    sums: [i32; TILE],
}

impl Rows {
    /// Rounds `x`: `[count, k]`, neither of them 0, normalised first.
    pub(in super::super) fn new(x: &[f32], k: usize, norm: Option<Norm<'_>>) -> Self {
        assert_eq!(x.len() % k, 0, "whole rows");
        let count = x.len() / k;
        let width = simd::height(count, most());
        let tiles = count.div_ceil(width);
        let steps = k.div_ceil(STEP);
        let mut rows = Self {
            numbers: Vec::with_capacity(tiles * width * steps),
            count,
            width,
            tiles,
            steps,
            scales: vec![0.0; tiles * width],
            sums: vec![0; tiles * width],
            seconds: Vec::new(),
        };
        rows.seconds.resize_with(tiles, Seconds::default);
        // Written by the tasks, each on its thread.
        let numbers = &mut rows.numbers.spare_capacity_mut()[..tiles * width * steps];
        let tasks = numbers.chunks_mut(width * steps);
        let tasks = tasks.zip(rows.scales.chunks_mut(width));
        let tasks = tasks.zip(rows.sums.chunks_mut(width));
        let tasks = tasks.zip(&mut rows.seconds).zip(x.chunks(width * k));
        let tasks = tasks.map(|((((numbers, scales), sums), seconds), x)| Round {
            x,
            k,
            norm,
            width,
            numbers,
            scales,
            sums,
            seconds,
        });
        if x.len() <= CHUNK {
            tasks.for_each(simd::run);
        } else {
            pool::consume(tasks.collect(), simd::run);
        }
        // SAFETY: a task for each tile has written every step of each of its rows.
        unsafe { rows.numbers.set_len(tiles * width * steps) };
        rows
    }

    /// Where a step of a tile begins: its rows are [`STEP`] bytes each.
    #[inline(always)]
    pub(in super::super) fn tile(&self, tile: usize, step: usize) -> *const i8 {
        let start = self.numbers.as_ptr().cast::<i8>();
        start.wrapping_add((tile * self.steps + step) * self.width * STEP)
    }

    /// Where a step of a row begins.
    #[inline(always)]
    pub(in super::super) fn at(&self, row: usize, step: usize) -> *const i8 {
        let inside = row % self.width * STEP;
        self.tile(row / self.width, step).wrapping_add(inside)
    }

    /// The steps of a tile that have second numbers, in order, and where these begin.
    #[inline(always)]
    pub(in super::super) fn seconds(
        &self,
        tile: usize,
    ) -> impl Iterator<Item = (usize, *const i8)> {
        let seconds = &self.seconds[tile];
        let steps = seconds.steps.iter().map(|step| *step as usize);
        let numbers = seconds.numbers.chunks_exact(self.width);
        steps.zip(numbers.map(|rows| rows.as_ptr().cast()))
    }

    /// The sum of a row's second numbers.
    #[inline(always)]
    pub(in super::super) fn sum_of_seconds(&self, row: usize) -> i32 {
        self.seconds[row / self.width].sums[row % self.width]
    }
}

/// A tile of rows.
struct Round<'a> {
    x: &'a [f32],
    k: usize,
    norm: Option<Norm<'a>>,
    width: usize,
    numbers: &'a mut [MaybeUninit<Numbers>],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
    seconds: &'a mut Seconds,
}

impl Kernel for Round<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let mut normal = Vec::new();
        let x = match self.norm {
            None => self.x,
            Some(norm) => {
                normal.extend_from_slice(self.x);
                norm.apply(&mut normal);
                &normal
            }
        };
        let mut inverse = [0.0; TILE];
        let rows = x.chunks_exact(self.k).zip(self.scales);
        for ((row, scale), inverse) in rows.zip(&mut inverse) {
            (*scale, *inverse) = scale_of(row);
        }
        for (step, numbers) in self.numbers.chunks_exact_mut(self.width).enumerate() {
            let mut any = 0;
            let first = step * STEP;
            for (r, row) in x.chunks_exact(self.k).enumerate() {
                let (number, sum, some) = round(&part(row, first), inverse[r]);
                numbers[r].write(number);
                self.sums[r] += sum;
                any |= some;
            }
            for row in &mut numbers[x.len() / self.k..] {
                row.write(Numbers([0; STEP]));
            }
            if any != 0 {
                self.seconds.steps.push(step as u32);
                let mut rows = x.chunks_exact(self.k).zip(inverse);
                for sum in &mut self.seconds.sums[..self.width] {
                    let second = match rows.next() {
                        Some((row, inverse)) => second(&part(row, first), inverse),
                        None => Numbers([0; STEP]),
                    };
                    *sum += second.0.iter().map(|n| i32::from(*n)).sum::<i32>();
                    self.seconds.numbers.push(second);
                }
            }
        }
    }
}

/// A row's scale, and by what its elements are multiplied. A number that is none makes the scale
/// none.
#[inline(always)]
fn scale_of(x: &[f32]) -> (f32, f32) {
    // Without a sign, bits are in the order of the numbers, and NaN is the greatest.
    let most = x
        .iter()
        .fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    let most = f32::from_bits(most);
    if most <= 1e-30 || !most.is_finite() {
        return (most / 127.0, 0.0);
    }
    // The mean magnitude, of whole numbers: their sum is exact, in whatever order it is made.
    let finest = most.recip() * MOST;
    let mut total = 0u32;
    for x in x {
        let shifted = x.abs() * finest + ROUND;
        total += shifted.to_bits() - ROUND.to_bits();
    }
    let clip = total as f32 * (CLIP / x.len() as f32);
    let steps = (clip.min(MOST) * (1.0 / 127.0)).max(1.0);
    (most * (1.0 / MOST) * steps, finest * steps.recip())
}

/// A step of a row, filled with zeros.
#[inline(always)]
fn part(row: &[f32], first: usize) -> [f32; STEP] {
    match row[first..].first_chunk() {
        Some(part) => *part,
        None => {
            let mut part = [0.0; STEP];
            part[..row.len() - first].copy_from_slice(&row[first..]);
            part
        }
    }
}

/// A whole number as two: the second stands for 128 times as much, and is 0 where one is enough.
#[inline(always)]
fn split(x: f32, inverse: f32) -> (i32, i32) {
    let shifted = x * inverse + ROUND;
    let whole = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
    let high = if whole.abs() > 127 {
        (whole + HIGH / 2) >> HIGH.ilog2()
    } else {
        0
    };
    (whole - high * HIGH, high)
}

/// The numbers of a step of a row, their sum, and bits of any second number.
#[inline(always)]
fn round(x: &[f32; STEP], inverse: f32) -> (Numbers, i32, i32) {
    let mut numbers = Numbers([0; STEP]);
    let (mut sum, mut any) = (0, 0);
    for (x, number) in x.iter().zip(&mut numbers.0) {
        let (low, high) = split(*x, inverse);
        *number = low as i8;
        sum += low;
        any |= high;
    }
    (numbers, sum, any)
}

/// The second numbers of a step of a row.
#[inline(always)]
fn second(x: &[f32; STEP], inverse: f32) -> Numbers {
    let mut numbers = Numbers([0; STEP]);
    for (x, number) in x.iter().zip(&mut numbers.0) {
        *number = split(*x, inverse).1 as i8;
    }
    numbers
}
