//! What is in a scene, and how one is drawn by lot.

use serde::Serialize;

use crate::rng::Stream;

/// Which of the two disjoint families of scenes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Scenes the model is trained on.
    Train,
    /// Scenes it is measured on; never seen in training.
    Eval,
}

/// The outline of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ShapeKind {
    /// A disc.
    Circle,
    /// An upright square.
    Square,
    /// A triangle, tip up.
    Triangle,
    /// A five-pointed star, tip up.
    Star,
}

impl ShapeKind {
    /// All of them, in the order of the training labels.
    pub const ALL: [Self; 4] = [Self::Circle, Self::Square, Self::Triangle, Self::Star];

    /// The noun.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
        }
    }
}

/// The colour of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Color {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
    Black,
}

impl Color {
    /// All of them, in the order of the training labels.
    pub const ALL: [Self; 6] = [
        Self::Red,
        Self::Green,
        Self::Blue,
        Self::Yellow,
        Self::Purple,
        Self::Black,
    ];

    /// The adjective.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Yellow => "yellow",
            Self::Purple => "purple",
            Self::Black => "black",
        }
    }

    pub(crate) const fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [222, 42, 42],
            Self::Green => [38, 160, 66],
            Self::Blue => [42, 84, 226],
            Self::Yellow => [244, 204, 34],
            Self::Purple => [146, 52, 178],
            Self::Black => [34, 34, 38],
        }
    }
}

/// How big an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Size {
    Small,
    Large,
}

impl Size {
    /// The adjective.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }
}

/// The name of a cell of the 3 x 3 grid (row-major; cells past the ninth have none).
pub fn position_name(cell: usize) -> &'static str {
    const NAMES: [&str; 9] = [
        "top left",
        "top center",
        "top right",
        "middle left",
        "center",
        "middle right",
        "bottom left",
        "bottom center",
        "bottom right",
    ];
    NAMES.get(cell).copied().unwrap_or("nowhere")
}

/// One shape on the picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Object {
    /// Its outline.
    pub shape: ShapeKind,
    /// Its colour.
    pub color: Color,
    /// Its size.
    pub size: Size,
    /// Its cell of the 3 x 3 grid, row-major.
    pub cell: usize,
    /// Offset of its centre from the cell's, in pixels.
    pub offset: [f32; 2],
    /// What is added to each channel of the colour's standard value.
    pub tint: [i16; 3],
}

/// A picture before it is drawn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scene {
    /// What the scene was drawn from.
    pub seed: u64,
    /// Its number within the seed.
    pub index: u64,
    /// Its family.
    pub split: Split,
    /// One to four objects in reading order, each in its own cell.
    pub objects: Vec<Object>,
    /// Two to four capitals, or two to four digits.
    pub text: String,
    /// Offset of the text from its place, in pixels.
    pub text_offset: [f32; 2],
    /// A pastel.
    pub background: [u8; 3],
    /// A dark colour.
    pub ink: [u8; 3],
}

impl Scene {
    /// The scene of that number: always the same one.
    pub fn generate(seed: u64, index: u64, split: Split) -> Self {
        let mut rng = Stream::new(seed, index, split, 0);
        let mut cells: Vec<usize> = (0..9).collect();
        rng.shuffle(&mut cells);
        cells.truncate(1 + rng.below(4));
        cells.sort_unstable();

        let mut objects: Vec<Object> = Vec::with_capacity(cells.len());
        for cell in cells {
            // Likeness with the object before makes counts above one common.
            let before = objects.last().copied();
            let shape = match before {
                Some(o) if rng.one_in(4) => o.shape,
                _ => rng.pick(&ShapeKind::ALL),
            };
            let color = match before {
                Some(o) if rng.one_in(4) => o.color,
                _ => rng.pick(&Color::ALL),
            };
            let size = rng.pick(&[Size::Small, Size::Large]);
            let wander = match size {
                Size::Small => 9.0,
                Size::Large => 5.0,
            };
            objects.push(Object {
                shape,
                color,
                size,
                cell,
                offset: [rng.around_zero(wander), rng.around_zero(wander)],
                tint: std::array::from_fn(|_| rng.below(25) as i16 - 12),
            });
        }

        let alphabet: &[u8] = if rng.one_in(3) {
            b"0123456789"
        } else {
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        };
        let length = 2 + rng.below(3);
        let text = (0..length)
            .map(|_| char::from(rng.pick(alphabet)))
            .collect();
        Self {
            seed,
            index,
            split,
            objects,
            text,
            text_offset: [rng.around_zero(4.0), rng.around_zero(1.5)],
            background: std::array::from_fn(|_| 212 + rng.below(40) as u8),
            ink: std::array::from_fn(|_| 10 + rng.below(60) as u8),
        }
    }

    /// The only object that satisfies `test`; none when there is no such or several.
    pub fn only(&self, test: impl Fn(&Object) -> bool) -> Option<&Object> {
        let mut found = self.objects.iter().filter(|o| test(o));
        match (found.next(), found.next()) {
            (Some(o), None) => Some(o),
            _ => None,
        }
    }

    /// How many objects satisfy `test`.
    pub fn count(&self, test: impl Fn(&Object) -> bool) -> usize {
        self.objects.iter().filter(|o| test(o)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_number_same_scene_and_others_differ() {
        let a = Scene::generate(7, 3, Split::Eval);
        assert_eq!(a, Scene::generate(7, 3, Split::Eval));
        assert_eq!(a.render(), Scene::generate(7, 3, Split::Eval).render());
        assert_eq!(
            a.questions(),
            Scene::generate(7, 3, Split::Eval).questions()
        );
        assert_ne!(a.render(), Scene::generate(7, 4, Split::Eval).render());
        assert_ne!(a.render(), Scene::generate(8, 3, Split::Eval).render());
    }

    #[test]
    fn splits_share_no_picture() {
        use std::collections::HashSet;
        let pictures = |split| -> HashSet<Vec<u8>> {
            (0..60)
                .map(|i| Scene::generate(1, i, split).render())
                .collect()
        };
        let (train, eval) = (pictures(Split::Train), pictures(Split::Eval));
        assert_eq!((train.len(), eval.len()), (60, 60));
        assert!(train.is_disjoint(&eval));
    }

    #[test]
    fn objects_stand_in_reading_order_in_cells_of_their_own() {
        for i in 0..500 {
            let s = Scene::generate(5, i, Split::Train);
            assert!((1..=4).contains(&s.objects.len()));
            assert!(s.objects.windows(2).all(|w| w[0].cell < w[1].cell));
            assert!((2..=4).contains(&s.text.len()));
        }
    }
}
