//! Things that are drawn by their weights.

use crate::random::Random;

/// A thing, its weight, and the sum of this and of those before it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Weighed<T> {
    thing: T,
    weight: f64,
    end: f64,
}

/// Things with weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights<T> {
    things: Vec<Weighed<T>>,
}

impl<T: Copy> Weights<T> {
    /// `None` where a weight is no number from 0 on, or all are 0.
    pub fn new(things: impl Iterator<Item = (T, f64)>) -> Option<Self> {
        let mut end = 0.0;
        let things: Option<Vec<Weighed<T>>> = things
            .map(|(thing, weight)| {
                end += weight;
                (weight.is_finite() && weight >= 0.0).then_some(Weighed { thing, weight, end })
            })
            .collect();
        things.filter(|_| end > 0.0 && end.is_finite()).map(|things| Weights { things })
    }

    /// Those that `keep` makes something of, with their weights.
    pub fn filtered<U: Copy>(&self, keep: impl Fn(T) -> Option<U>) -> Option<Weights<U>> {
        Weights::new(self.things.iter().filter_map(|weighed| Some((keep(weighed.thing)?, weighed.weight))))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.things.len()
    }

    /// One of those whose weight is not 0.
    pub fn draw(&self, random: &mut Random) -> T {
        let sum = self.things.last().expect("there are some").end;
        // 53 bits are what a number below 1 has.
        let place = random.below(1 << 53) as f64 / (1_u64 << 53) as f64 * sum;
        let number = self.things.partition_point(|weighed| weighed.end <= place);
        self.things[number.min(self.things.len() - 1)].thing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_drawn_as_often_as_their_weights_say() {
        let weights = Weights::new([(0, 80.0), (1, 0.0), (2, 15.0), (3, 5.0)].into_iter()).expect("they are right");
        let (mut random, mut drawn) = (Random::new(1), [0; 4]);
        (0..10_000).for_each(|_| drawn[weights.draw(&mut random)] += 1);
        assert!((7800..8200).contains(&drawn[0]) && drawn[1] == 0, "{drawn:?}");
        assert!((1400..1600).contains(&drawn[2]) && (400..600).contains(&drawn[3]), "{drawn:?}");
    }

    #[test]
    fn what_is_left_keeps_its_weights() {
        let weights = Weights::new([(0, 1.0), (1, 1e-30), (2, 3e-30)].into_iter()).expect("they are right");
        let rest = weights.filtered(|thing| (thing > 0).then_some(thing * 10)).expect("some are left");
        let (mut random, mut drawn) = (Random::new(1), [0; 2]);
        (0..1000).for_each(|_| drawn[usize::from(rest.draw(&mut random) == 20)] += 1);
        assert!((200..300).contains(&drawn[0]), "{drawn:?}");
        assert_eq!(weights.filtered(|_| None::<u8>), None);
    }

    #[test]
    fn weights_are_numbers_with_a_sum() {
        for weights in
            [vec![], vec![(0, 0.0)], vec![(0, 1.0), (1, -1.0)], vec![(0, f64::NAN)], vec![(0, f64::INFINITY)]]
        {
            assert_eq!(Weights::new(weights.into_iter()), None);
        }
    }
}
