//! Chance that can be repeated: a seed gives the same numbers, and so the same faults.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): small, and good enough to
/// choose faults by. Never for keys.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Of this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` up to, but not, `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    /// An index into something so long.
    pub fn below(&mut self, length: usize) -> usize {
        usize::try_from(self.between(0, length as u64)).unwrap()
    }

    /// One of these.
    pub fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

#[test]
fn a_seed_repeats_its_numbers() {
    // The first numbers of seed 0 as the paper's reference code gives them.
    let mut dice = Dice::new(0);
    assert_eq!(
        (dice.next(), dice.next()),
        (0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4)
    );
    let rolls = |seed| {
        let mut dice = Dice::new(seed);
        (0..100).map(|_| dice.between(3, 9)).collect::<Vec<_>>()
    };
    assert_eq!(rolls(7), rolls(7));
    assert_ne!(rolls(7), rolls(8));
    assert!(rolls(7).iter().all(|roll| (3..9).contains(roll)));
}
