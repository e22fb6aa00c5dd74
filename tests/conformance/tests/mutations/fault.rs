//! The faults that can be planted. Numbers, because an entry holds plain functions: the fault is a
//! parameter of their type.

pub(crate) const NONE: u8 = 0;
pub(crate) const PROCESSOR_OFF_BY_ONE: u8 = 1;
pub(crate) const PROCESSOR_LOSES_ITEM: u8 = 2;
pub(crate) const PLACEHOLDER_TYPED: u8 = 3;
pub(crate) const PROCESSOR_PANICS: u8 = 4;
pub(crate) const PROCESSOR_EATS_TEXT: u8 = 5;
pub(crate) const MAXIMUM_TOO_SMALL: u8 = 6;
pub(crate) const MAXIMUM_TOO_LARGE: u8 = 7;
pub(crate) const MAXIMUM_ZERO: u8 = 8;
pub(crate) const DUMMY_SHORT: u8 = 9;
pub(crate) const DUMMY_TOO_FEW: u8 = 10;
pub(crate) const MAPPER_DROPS_ITEM: u8 = 11;
pub(crate) const MAPPER_DUPLICATES_ITEM: u8 = 12;
pub(crate) const MAPPER_IGNORES_PICTURE: u8 = 13;
pub(crate) const MAPPER_REMEMBERS: u8 = 14;
pub(crate) const ENCODER_SHORT: u8 = 15;
pub(crate) const ENCODER_IGNORES_INPUT: u8 = 16;
pub(crate) const ENCODER_MIXES_ITEMS: u8 = 17;
pub(crate) const EMBED_REMEMBERS: u8 = 18;
pub(crate) const ATTENTION_LEAKS: u8 = 19;
pub(crate) const BATCH_SIZE_MATTERS: u8 = 20;
pub(crate) const CACHE_FORGOTTEN: u8 = 21;
pub(crate) const MISSING_IGNORED: u8 = 22;
pub(crate) const SHAPE_IGNORED: u8 = 23;
pub(crate) const SURPLUS_IGNORED: u8 = 24;
pub(crate) const LOADER_PANICS: u8 = 25;
pub(crate) const NAN_HIDDEN: u8 = 26;
