//! The one pixel format that everything after decoding works on, and the rectangles it is cut by.

use kiln_registry::{Error, HostTensor, MediaItem, Result};

/// A width and a height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    /// Pixels from left to right.
    pub width: usize,
    /// Pixels from top to bottom.
    pub height: usize,
}

impl Size {
    /// A size.
    pub const fn new(width: usize, height: usize) -> Self {
        Self { width, height }
    }

    /// The rectangle from the origin.
    pub const fn rect(self) -> Rect {
        Rect {
            x: 0,
            y: 0,
            width: self.width,
            height: self.height,
        }
    }

    /// How many pixels, saturating.
    pub const fn pixels(self) -> usize {
        self.width.saturating_mul(self.height)
    }
}

/// A rectangle. Its corner may lie outside the picture it refers to, at negative coordinates:
/// that part is padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rect {
    /// The left edge.
    pub x: i64,
    /// The top edge.
    pub y: i64,
    /// Pixels from left to right.
    pub width: usize,
    /// Pixels from top to bottom.
    pub height: usize,
}

impl Rect {
    /// Its width and height.
    pub const fn size(self) -> Size {
        Size::new(self.width, self.height)
    }

    /// The part that both have, if any.
    pub fn intersect(self, other: Rect) -> Option<Rect> {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let right = (self.x + self.width as i64).min(other.x + other.width as i64);
        let bottom = (self.y + self.height as i64).min(other.y + other.height as i64);
        (right > x && bottom > y).then(|| Rect {
            x,
            y,
            width: (right - x) as usize,
            height: (bottom - y) as usize,
        })
    }
}

/// An RGB picture of 8 bits a channel, rows from the top, channels interleaved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage8 {
    size: Size,
    data: Vec<u8>,
}

impl RgbImage8 {
    /// A picture over `data`.
    ///
    /// # Shapes
    /// `data`: `[height, width, 3]`.
    ///
    /// # Errors
    /// [`Error::Internal`] when the size has no pixel or does not hold exactly the data.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Self> {
        let bytes = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if width == 0 || height == 0 || bytes != Some(data.len()) {
            return Err(Error::internal(format!(
                "a picture of {width}x{height} can't hold {} bytes",
                data.len()
            )));
        }
        Ok(Self {
            size: Size::new(width, height),
            data,
        })
    }

    /// A picture of one colour.
    ///
    /// # Errors
    /// As [`RgbImage8::new`].
    pub fn filled(size: Size, color: [u8; 3]) -> Result<Self> {
        Self::new(size.width, size.height, color.repeat(size.pixels()))
    }

    /// The picture of a decoded item.
    ///
    /// # Errors
    /// [`Error::Internal`] when the item's content is no `u8 [height, width, 3]`.
    pub fn from_item(item: &MediaItem) -> Result<Self> {
        let content = item.content()?;
        match (content.shape(), content.as_u8()) {
            ([height, width, 3], Some(data)) => Self::new(*width, *height, data.to_vec()),
            (shape, _) => Err(Error::internal(format!(
                "an image item holds {} {shape:?}, not u8 [height, width, 3]",
                content.data().dtype()
            ))),
        }
    }

    /// As the content of a media item.
    ///
    /// # Shapes
    /// u8 `[height, width, 3]`.
    ///
    /// # Errors
    /// None in practice: the size always fits the data.
    pub fn into_tensor(self) -> Result<HostTensor> {
        HostTensor::u8([self.size.height, self.size.width, 3], self.data)
    }

    /// Width and height.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Pixels from left to right.
    pub fn width(&self) -> usize {
        self.size.width
    }

    /// Pixels from top to bottom.
    pub fn height(&self) -> usize {
        self.size.height
    }

    /// The bytes.
    ///
    /// # Shapes
    /// `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes, without a copy.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// The bytes of a row; empty outside the picture.
    pub fn row(&self, y: usize) -> &[u8] {
        let stride = self.size.width * 3;
        self.data.get(y * stride..(y + 1) * stride).unwrap_or(&[])
    }
}
