//! Questions that have exactly one right answer on their scene.

use serde::Serialize;

use crate::rng::Stream;
use crate::scene::{Color, Object, Scene, ShapeKind, position_name};

/// What a question asks for; accuracy is reported by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The whole scene in one sentence.
    Describe,
    /// How many.
    Count,
    /// What colour.
    Color,
    /// Where.
    Where,
    /// What is written.
    Written,
    /// Which shape.
    Shape,
    /// Small or large.
    Size,
}

impl Kind {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 7] = [
        Self::Describe,
        Self::Count,
        Self::Color,
        Self::Where,
        Self::Written,
        Self::Shape,
        Self::Size,
    ];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::Count => "count",
            Self::Color => "color",
            Self::Where => "where",
            Self::Written => "written",
            Self::Shape => "shape",
            Self::Size => "size",
        }
    }
}

/// A question and its one right answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    /// What it asks for.
    pub kind: Kind,
    /// In plain English.
    pub text: String,
    /// What an exact match compares with.
    pub answer: String,
}

const NUMBERS: [&str; 5] = ["zero", "one", "two", "three", "four"];

impl Scene {
    /// Six to ten questions in an order drawn by lot: one of each kind that the scene
    /// has an unambiguous question for, and a few more.
    pub fn questions(&self) -> Vec<Question> {
        let mut rng = Stream::new(self.seed, self.index, self.split, 1);
        let rng = &mut rng;
        let mut out = vec![self.describe(rng), self.written(rng)];
        out.push(self.count_question(rng));
        out.push(self.count_question(rng));
        for _ in 0..2 {
            out.extend(self.color_question(rng));
            out.extend(self.where_question(rng));
        }
        out.extend(self.shape_question(rng));
        out.extend(self.size_question(rng));
        let mut seen = std::collections::HashSet::new();
        out.retain(|q| seen.insert((q.kind, q.answer.clone(), q.text.clone())));
        rng.shuffle(&mut out);
        out
    }

    fn describe(&self, rng: &mut Stream) -> Question {
        let text = rng.pick(&[
            "Describe the picture.",
            "Describe the image.",
            "What is in the picture?",
            "What do you see?",
        ]);
        let parts: Vec<String> = self
            .objects
            .iter()
            .map(|o| {
                let (size, color, shape) = (o.size.name(), o.color.name(), o.shape.name());
                format!("a {size} {color} {shape} at the {}", position_name(o.cell))
            })
            .collect();
        let sentence = parts.join(", ").replacen('a', "A", 1);
        question(Kind::Describe, text, &format!("{sentence}."))
    }

    fn written(&self, rng: &mut Stream) -> Question {
        let text = rng.pick(&[
            "What is written?",
            "What does the text say?",
            "Read the text.",
            "What is written in the picture?",
        ]);
        question(Kind::Written, text, &self.text)
    }

    fn count_question(&self, rng: &mut Stream) -> Question {
        // Mostly about what is there, now and then about what may not be.
        let like = rng.below(self.objects.len());
        let (shape, color) = match self.objects.get(like) {
            Some(o) if !rng.one_in(4) => (o.shape, o.color),
            _ => (rng.pick(&ShapeKind::ALL), rng.pick(&Color::ALL)),
        };
        let (what, n) = match rng.below(5) {
            0 => ("shapes".to_owned(), self.objects.len()),
            1 | 2 => (
                format!("{}s", shape.name()),
                self.count(|o| o.shape == shape),
            ),
            3 => (
                format!("{} shapes", color.name()),
                self.count(|o| o.color == color),
            ),
            _ => (
                format!("{} {}s", color.name(), shape.name()),
                self.count(|o| o.shape == shape && o.color == color),
            ),
        };
        let text = match rng.below(3) {
            0 => format!("How many {what} are there?"),
            1 => format!("How many {what} do you see?"),
            _ => format!("Count the {what}."),
        };
        question(
            Kind::Count,
            &text,
            NUMBERS.get(n).copied().unwrap_or("many"),
        )
    }

    fn color_question(&self, rng: &mut Stream) -> Option<Question> {
        let o = self.objects.get(rng.below(self.objects.len()))?;
        let what = if self.only(|p| p.shape == o.shape).is_some() && !rng.one_in(3) {
            o.shape.name().to_owned()
        } else {
            format!("shape at the {}", position_name(o.cell))
        };
        let text = match rng.below(2) {
            0 => format!("What color is the {what}?"),
            _ => format!("What is the color of the {what}?"),
        };
        Some(question(Kind::Color, &text, o.color.name()))
    }

    fn where_question(&self, rng: &mut Stream) -> Option<Question> {
        let o = self.objects.get(rng.below(self.objects.len()))?;
        let what = self.refer(o, rng)?;
        let text = match rng.below(2) {
            0 => format!("Where is the {what}?"),
            _ => format!("In which place is the {what}?"),
        };
        Some(question(Kind::Where, &text, position_name(o.cell)))
    }

    fn shape_question(&self, rng: &mut Stream) -> Option<Question> {
        let o = self.objects.get(rng.below(self.objects.len()))?;
        let text = if self.only(|p| p.color == o.color).is_some() && !rng.one_in(3) {
            format!("Which shape is {}?", o.color.name())
        } else {
            format!("Which shape is at the {}?", position_name(o.cell))
        };
        Some(question(Kind::Shape, &text, o.shape.name()))
    }

    fn size_question(&self, rng: &mut Stream) -> Option<Question> {
        let o = self.objects.get(rng.below(self.objects.len()))?;
        let what = self.refer(o, rng)?;
        let text = match rng.below(2) {
            0 => format!("Is the {what} small or large?"),
            _ => format!("How big is the {what}?"),
        };
        Some(question(Kind::Size, &text, o.size.name()))
    }

    /// Words that mean `o` and no other object; none when colour and shape do not tell.
    fn refer(&self, o: &Object, rng: &mut Stream) -> Option<String> {
        if self.only(|p| p.shape == o.shape).is_some() && rng.one_in(2) {
            return Some(o.shape.name().to_owned());
        }
        self.only(|p| p.shape == o.shape && p.color == o.color)
            .map(|_| format!("{} {}", o.color.name(), o.shape.name()))
    }
}

fn question(kind: Kind, text: &str, answer: &str) -> Question {
    Question {
        kind,
        text: text.to_owned(),
        answer: answer.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Split;

    fn scenes() -> impl Iterator<Item = Scene> {
        (0..2000).map(|i| Scene::generate(11, i, Split::Eval))
    }

    fn tail<'a>(text: &'a str, heads: &[&str]) -> Option<&'a str> {
        let head = heads.iter().find_map(|h| text.strip_prefix(h))?;
        Some(head.trim_end_matches(['?', '.']))
    }

    /// The objects that a noun phrase of a question can mean, read from the words alone.
    fn meant<'a>(scene: &'a Scene, phrase: &str) -> Vec<&'a Object> {
        let (noun, place) = match phrase.split_once(" at the ") {
            Some((noun, place)) => (noun, Some(place)),
            None => (phrase, None),
        };
        let fits = |o: &&Object| {
            place.is_none_or(|p| position_name(o.cell) == p)
                && noun.split(' ').all(|w| {
                    let w = w.trim_end_matches('s');
                    w == "shape" || w == o.shape.name() || w == o.color.name()
                })
        };
        scene.objects.iter().filter(fits).collect()
    }

    #[test]
    fn referents_are_unique_and_answers_true() {
        let mut checked = [0; 7];
        for scene in scenes() {
            for q in scene.questions() {
                checked[Kind::ALL.iter().position(|&k| k == q.kind).unwrap()] += 1;
                let one = |phrase: &str| match meant(&scene, phrase)[..] {
                    [o] => *o,
                    _ => panic!("{}: ambiguous on {:?}", q.text, scene.objects),
                };
                match q.kind {
                    Kind::Color => {
                        let heads = ["What color is the ", "What is the color of the "];
                        let o = one(tail(&q.text, &heads).unwrap());
                        assert_eq!(q.answer, o.color.name());
                    }
                    Kind::Where => {
                        let heads = ["Where is the ", "In which place is the "];
                        let o = one(tail(&q.text, &heads).unwrap());
                        assert_eq!(q.answer, position_name(o.cell));
                    }
                    Kind::Size => {
                        let phrase = tail(&q.text, &["Is the ", "How big is the "]).unwrap();
                        let o = one(phrase.trim_end_matches(" small or large"));
                        assert_eq!(q.answer, o.size.name());
                    }
                    Kind::Shape => {
                        let place = tail(&q.text, &["Which shape is "]).unwrap();
                        let o = match place.strip_prefix("at the ") {
                            Some(p) => one(&format!("shape at the {p}")),
                            None => one(place),
                        };
                        assert_eq!(q.answer, o.shape.name());
                    }
                    Kind::Count => {
                        let phrase = tail(&q.text, &["How many ", "Count the "]).unwrap();
                        let phrase = phrase.trim_end_matches(" are there");
                        let phrase = phrase.trim_end_matches(" do you see");
                        assert_eq!(q.answer, NUMBERS[meant(&scene, phrase).len()]);
                    }
                    Kind::Written => assert_eq!(q.answer, scene.text),
                    Kind::Describe => {
                        assert_eq!(q.answer.matches(" at the ").count(), scene.objects.len());
                        for o in &scene.objects {
                            let words = format!(
                                " {} {} {} at the {}",
                                o.size.name(),
                                o.color.name(),
                                o.shape.name(),
                                position_name(o.cell)
                            );
                            assert!(q.answer.contains(&words), "{}", q.answer);
                        }
                    }
                }
            }
        }
        assert!(checked.iter().all(|&n| n > 1000), "{checked:?}");
    }

    #[test]
    fn same_words_never_have_two_answers() {
        for scene in scenes() {
            let mut answers = std::collections::HashMap::new();
            for q in scene.questions() {
                let first = answers
                    .entry(q.text.clone())
                    .or_insert_with(|| q.answer.clone());
                assert_eq!(*first, q.answer, "{}", q.text);
            }
        }
    }
}
