//! The simulator's only source of chance: xoshiro256**, seeded through splitmix64.

/// A small deterministic generator. The same seed gives the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

/// One step of splitmix64: turns any number into a well-mixed one.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut at = seed;
        let state = [(); 4].map(|()| {
            at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(at)
        });
        Self { state }
    }

    /// A generator of its own for a component, so that a change in one does not shift the chances of another.
    pub fn fork(&mut self) -> Self {
        Self::new(self.bits())
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= t;
        *d = d.rotate_left(45);
        result
    }

    /// One of `rates`, in so many of a hundred cases; else 0, for never.
    pub fn often(&mut self, percent: u64, rates: &[u64]) -> u64 {
        let on = self.percent(percent);
        let rate = self.pick(rates);
        if on { rate } else { 0 }
    }

    /// A number below `bound`; 0 when the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.bits() % bound }
    }

    /// A number of `low..=high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True once in `n` times; never when `n` is 0.
    pub fn one_in(&mut self, n: u64) -> bool {
        n != 0 && self.below(n) == 0
    }

    /// True with `percent` chances of a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `items`, which are not empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// A number of `low..=high` whose order of magnitude is even: small ones are as likely as large ones.
    pub fn magnitude(&mut self, low: u64, high: u64) -> u64 {
        let low = low.max(1);
        let steps = 64 - (high / low).leading_zeros();
        let shift = self.below(u64::from(steps.max(1)));
        let floor = low << shift;
        self.range(floor.min(high), (floor * 2).min(high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_bounds_hold() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        for _ in 0..1000 {
            assert_eq!(a.bits(), b.bits());
            let _ = b.clone();
            let x = a.range(5, 9);
            assert!((5..=9).contains(&x));
            assert_eq!(b.range(5, 9), x);
            let m = a.magnitude(100, 100_000);
            assert!((100..=100_000).contains(&m));
            b.magnitude(100, 100_000);
        }
        assert_ne!(Rng::new(1).bits(), Rng::new(2).bits());
    }
}
