//! The rows of a weight that are multiplied together, as tiles read them: where they lie, or copied
//! beside each other.

use super::pack::{SIDE, STEP};
use half::bf16;
use std::arch::x86_64::{
    _MM_HINT_T1, _mm_prefetch, _mm512_loadu_si512, _mm512_maskz_loadu_epi16, _mm512_store_si512,
};
use std::ops::Range;

/// Rows of a panel: two tiles.
pub(super) const PANEL: usize = 2 * SIDE;
/// Steps of K that a line is asked for ahead of its copying.
const LEAD: usize = 2;

/// The rows of a panel in the weight: of each tile up to 16, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) tiles: [&'a [bf16]; 2],
    pub(super) k: usize,
}

/// Some steps of a panel.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    /// The first row's first step.
    pub(super) low: *const u8,
    /// That of the row 16 further on.
    pub(super) high: *const u8,
    /// Bytes to the next row.
    pub(super) stride: usize,
    /// Bytes to the next step.
    pub(super) step: usize,
    /// Steps that are there.
    pub(super) steps: usize,
    /// The step after them, filled with zeros; a row every 64 bytes.
    pub(super) tail: *const u8,
}

impl Panel {
    /// `steps` of its steps, after some that are left out.
    pub(super) fn from(self, left_out: usize, steps: usize) -> Self {
        Self {
            low: self.low.wrapping_add(left_out * self.step),
            high: self.high.wrapping_add(left_out * self.step),
            steps,
            ..self
        }
    }
}

impl<'a> Source<'a> {
    /// A row; empty where there is none.
    fn row(&self, r: usize) -> &'a [bf16] {
        let rows = self.tiles[r / SIDE];
        let first = r % SIDE * self.k;
        rows.get(first..first + self.k).unwrap_or_default()
    }

    /// Whether both tiles have all rows.
    fn whole(&self) -> bool {
        self.tiles.iter().all(|rows| rows.len() == SIDE * self.k)
    }

    /// The panel where it is.
    ///
    /// # Safety
    /// `tail` has 2 KiB; `padded` has room for whole steps of each row of a panel.
    pub(super) unsafe fn in_place(&self, tail: *mut u8, padded: *mut u8) -> Panel {
        let k = self.k;
        let steps = k / STEP;
        if self.whole() {
            if !k.is_multiple_of(STEP) {
                for r in 0..PANEL {
                    // SAFETY: 32 rows of 64 bytes.
                    unsafe { pad(&self.row(r)[steps * STEP..], 64, tail.add(r * 64)) };
                }
            }
            return Panel {
                low: self.tiles[0].as_ptr().cast(),
                high: self.tiles[1].as_ptr().cast(),
                stride: k * 2,
                step: 64,
                steps,
                tail,
            };
        }
        let steps = k.div_ceil(STEP);
        let stride = steps * 64;
        for r in 0..PANEL {
            // SAFETY: 32 rows of all steps.
            unsafe { pad(self.row(r), stride, padded.add(r * stride)) };
        }
        Panel {
            low: padded,
            high: padded.wrapping_add(SIDE * stride),
            stride,
            step: 64,
            steps,
            tail,
        }
    }
}

/// Copies a row to `stride` bytes, filled with zeros.
///
/// # Safety
/// `to` has room for them.
unsafe fn pad(row: &[bf16], stride: usize, to: *mut u8) {
    let bytes = size_of_val(row);
    // SAFETY: what the caller promised.
    unsafe {
        to.copy_from_nonoverlapping(row.as_ptr().cast(), bytes);
        to.add(bytes).write_bytes(0, stride - bytes);
    }
}

/// A copy of some steps of a panel, of each step 32 rows of 64 bytes, filled with zeros. It is made
/// bit by bit, while the matrix unit is busy with the panel before: what comes from memory is asked
/// for a while before it is needed.
pub(super) struct Copy<'a> {
    source: Source<'a>,
    steps: Range<usize>,
    to: *mut u8,
    /// The next step to copy, and the next row of it.
    step: usize,
    row: usize,
    /// Where the rows begin, if all are there and all steps are whole.
    rows: Option<[*const bf16; PANEL]>,
}

impl<'a> Copy<'a> {
    /// # Safety
    /// `to` begins with a line and has room for the steps until the copy is finished.
    pub(super) unsafe fn new(source: Source<'a>, steps: Range<usize>, to: *mut u8) -> Self {
        let whole = source.whole() && steps.end * STEP <= source.k;
        let copy = Self {
            step: steps.start,
            row: 0,
            rows: whole.then(|| std::array::from_fn(|r| source.row(r).as_ptr())),
            source,
            steps,
            to,
        };
        for step in copy.step..copy.steps.end.min(copy.step + LEAD) {
            for row in 0..PANEL {
                copy.ask_for(step, row);
            }
        }
        copy
    }

    fn ask_for(&self, step: usize, row: usize) {
        let row = self.source.row(row);
        let at = row.as_ptr().wrapping_add(step * STEP).cast::<i8>();
        // SAFETY: fetching a line does nothing else, wherever it lies.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at) };
    }

    /// Lines that it has in all.
    pub(super) fn lines(&self) -> usize {
        self.steps.len() * PANEL
    }

    /// Copies some lines, as long as there are any.
    ///
    /// # Safety
    /// The machine has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn advance(&mut self, mut lines: usize) {
        if let Some(rows) = &self.rows {
            while lines > 0 && self.step < self.steps.end {
                let count = lines.min(PANEL - self.row);
                let first = self.step * STEP;
                let step = self
                    .to
                    .wrapping_add((self.step - self.steps.start) * PANEL * 64);
                for (row, start) in rows[self.row..].iter().take(count).enumerate() {
                    // SAFETY: a whole step of a row, and a line of the copy for it; fetching a
                    // line does nothing else, wherever it lies.
                    unsafe {
                        let ahead = start.wrapping_add(first + LEAD * STEP);
                        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                        let line = _mm512_loadu_si512(start.add(first).cast());
                        _mm512_store_si512(step.add((self.row + row) * 64).cast(), line);
                    }
                }
                lines -= count;
                self.row += count;
                if self.row == PANEL {
                    (self.row, self.step) = (0, self.step + 1);
                }
            }
            return;
        }
        for _ in 0..lines {
            if self.step == self.steps.end {
                return;
            }
            if self.step + LEAD < self.steps.end {
                self.ask_for(self.step + LEAD, self.row);
            }
            let row = self.source.row(self.row);
            let first = row.len().min(self.step * STEP);
            let count = STEP.min(row.len() - first);
            let mask = ((1u64 << count) - 1) as u32;
            // SAFETY: masked to the elements that there are; a line of the copy for each row of
            // each step.
            unsafe {
                let from = row.as_ptr().add(first);
                let line = match count {
                    STEP => _mm512_loadu_si512(from.cast()),
                    _ => _mm512_maskz_loadu_epi16(mask, from.cast()),
                };
                let at = ((self.step - self.steps.start) * PANEL + self.row) * 64;
                _mm512_store_si512(self.to.add(at).cast(), line);
            }
            self.row += 1;
            if self.row == PANEL {
                (self.row, self.step) = (0, self.step + 1);
            }
        }
    }

    /// Copies what is left.
    ///
    /// # Safety
    /// As of [`advance`](Self::advance).
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn finish(mut self) -> Panel {
        // SAFETY: what the caller promised.
        unsafe { self.advance(usize::MAX) };
        Panel {
            low: self.to,
            high: self.to.wrapping_add(SIDE * 64),
            stride: 64,
            step: PANEL * 64,
            steps: self.steps.len(),
            tail: self.to,
        }
    }
}
