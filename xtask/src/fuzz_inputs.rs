//! Inputs for a fuzz target that are the same each time: the seeds, changed as drawn from a number. libFuzzer's own inputs depend on what
//! covers which code, which differs between runs.

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};
use std::fs;
use std::path::PathBuf;

/// Drawn from the number and the seed's own content: another seed in the folder leaves most inputs as they are.
fn drawn_for(seed: &[u8], number: u64) -> Drawn {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes()).update(seed);
    Drawn(ChaCha12Rng::from_seed(*hasher.finalize().as_bytes()))
}

/// Changes of one input, at most.
const CHANGES_MAX: usize = 4;
/// Bytes that one change puts in, takes out, or says again, at most.
const CHANGED_BYTES_MAX: usize = 32;

#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  cargo xtask fuzz-inputs fuzz/seeds/recovery target/fuzz/fixed/recovery --each 10 --bytes-max 1024"
)]
pub struct Arguments {
    /// The folder with the seeds
    seeds: PathBuf,
    /// The folder for the inputs, which is made if it is not there
    inputs: PathBuf,
    /// Inputs that are made from each seed
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    each: u32,
    /// Most bytes of an input
    #[arg(long)]
    bytes_max: usize,
    /// Decides on all changes
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(arguments: &Arguments) -> Result<(), String> {
    let failed = |path: &PathBuf| {
        let path = path.display().to_string();
        move |error| format!("{path}: {error}")
    };
    let folder = fs::read_dir(&arguments.seeds).map_err(failed(&arguments.seeds))?;
    let paths: Result<Vec<_>, _> = folder.map(|file| file.map(|file| file.path())).collect();
    let mut paths = paths.map_err(failed(&arguments.seeds))?;
    paths.sort();
    let seeds: Result<Vec<_>, _> = paths.iter().map(|path| fs::read(path).map_err(failed(path))).collect();
    let seeds = seeds?;
    if seeds.is_empty() {
        return Err(format!("there are no seeds in {}", arguments.seeds.display()));
    }
    fs::create_dir_all(&arguments.inputs).map_err(failed(&arguments.inputs))?;
    for (number, input) in changed(&seeds, arguments).enumerate() {
        let path = arguments.inputs.join(format!("{number:06}"));
        fs::write(&path, input).map_err(failed(&path))?;
    }
    Ok(())
}

/// So many inputs of each seed, in the order of the seeds.
fn changed<'a>(seeds: &'a [Vec<u8>], arguments: &'a Arguments) -> impl Iterator<Item = Vec<u8>> + 'a {
    let mut by_hash: Vec<_> = seeds.iter().map(|seed| (*blake3::hash(seed).as_bytes(), seed.as_slice())).collect();
    by_hash.sort();
    seeds.iter().flat_map(move |seed| {
        let mut drawn = drawn_for(seed, arguments.seed);
        let of_seed = (0..arguments.each).map(|_| {
            let mut input = seed.clone();
            for _ in 0..=drawn.below(CHANGES_MAX) {
                drawn.change(&mut input, &by_hash);
            }
            input.truncate(arguments.bytes_max);
            input
        });
        of_seed.collect::<Vec<_>>()
    })
}

struct Drawn(ChaCha12Rng);

impl Drawn {
    /// A number below this one, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }

    /// One of the seeds, which are in the order of their hashes and not none: that behind a hash which is drawn.
    fn pick<'a>(&mut self, by_hash: &[([u8; 32], &'a [u8])]) -> &'a [u8] {
        let mut hash = [0; 32];
        self.0.fill_bytes(&mut hash);
        by_hash[by_hash.partition_point(|(other, _)| *other < hash) % by_hash.len()].1
    }

    fn change(&mut self, input: &mut Vec<u8>, by_hash: &[([u8; 32], &[u8])]) {
        let at = self.below(input.len() + 1);
        let end = (at + 1 + self.below(CHANGED_BYTES_MAX)).min(input.len());
        match self.below(6) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.below(256) as u8,
            2 => {
                let mut bytes = vec![0; 1 + self.below(CHANGED_BYTES_MAX)];
                self.0.fill_bytes(&mut bytes);
                input.splice(at..at, bytes);
            }
            3 => drop(input.drain(at..end)),
            4 => {
                let again = input[at..end].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, again);
            }
            _ => {
                // The rest is another one's.
                let other = self.pick(by_hash);
                input.truncate(at);
                input.extend_from_slice(&other[self.below(other.len() + 1)..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(seed: u64) -> Arguments {
        Arguments { seeds: PathBuf::new(), inputs: PathBuf::new(), each: 50, bytes_max: 40, seed }
    }

    #[test]
    fn the_same_each_time_bounded_and_not_the_seeds() {
        let seeds = [vec![7; 10], vec![8; 20], (0..40).collect()];
        let of = |seed| changed(&seeds, &arguments(seed)).collect::<Vec<_>>();
        let more = [&seeds[..], &[vec![9; 30]]].concat();
        let as_before = of(1).into_iter().zip(changed(&more, &arguments(1))).filter(|(a, b)| a == b).count();
        assert!(as_before > 100, "{as_before} are as they were without another seed");
        let inputs = of(1);
        assert_eq!((inputs.len(), &inputs), (150, &of(1)));
        assert_ne!(inputs, of(2));
        assert!(inputs.iter().all(|input| input.len() <= 40));
        let others = inputs.iter().filter(|input| !seeds.contains(input)).count();
        assert!(others > 130, "{others} of them are no seeds");
    }
}
