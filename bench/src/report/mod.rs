//! `claim-bench report`: recorded runs as one HTML page, which needs no network and no scripts.

mod charts;
mod page;

use crate::error::BenchError;
use crate::record::Results;
use clap::Args;
use std::path::{Path, PathBuf};

/// Which runs, and where the page goes.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// Directories that `--record` made. Lines of several have the directories' names.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The file to write.
    #[arg(long, default_value = "report.html")]
    output: PathBuf,
}

/// A run, and the name that its lines have; empty where it is alone.
pub struct Run {
    name: String,
    results: Results,
}

/// Reads the runs and writes the page.
pub fn report(arguments: &ReportArguments) -> Result<(), BenchError> {
    let names = names(&arguments.runs);
    let runs =
        names.into_iter().zip(&arguments.runs).map(|(name, path)| Ok(Run { name, results: Results::read(path)? }));
    let runs: Vec<Run> = runs.collect::<Result<_, BenchError>>()?;
    let path = &arguments.output;
    std::fs::write(path, page::page(&runs)).map_err(|source| BenchError::Write { path: path.clone(), source })?;
    println!("{}", path.display());
    Ok(())
}

/// The last parts of the paths, or the paths themselves where those do not differ.
fn names(paths: &[PathBuf]) -> Vec<String> {
    if paths.len() == 1 {
        return vec![String::new()];
    }
    let last = |path: &PathBuf| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let names: Vec<String> = paths.iter().map(last).collect();
    let differ = (1..names.len()).all(|number| !names[..number].contains(&names[number]));
    if differ { names } else { paths.iter().map(|path: &PathBuf| shown(path)).collect() }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_told_apart() {
        let check = |paths: &[&str], expected: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            assert_eq!(names(&paths), expected);
        };
        check(&["a/before"], &[""]);
        check(&["a/before", "a/after/"], &["before", "after"]);
        check(&["a/run", "b/run"], &["a/run", "b/run"]);
    }
}
