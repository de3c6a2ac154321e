//! What the guest is made of, from Debian's packages: QEMU with its libraries, and the cloud kernels. They are unpacked into a
//! folder and not installed; apt keeps its own state out of it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tools of a Debian system that are needed.
const TOOLS: [&str; 4] = ["apt-get", "apt-cache", "dpkg-deb", "xz"];
/// The release whose packages are taken: the same on every machine.
const RELEASE: &str = "bookworm";
const BACKPORTS: &str = "bookworm-backports";
/// The package of QEMU, from the backports.
const QEMU: &str = "qemu-system-x86";
/// The package that depends on the present cloud kernel of a release.
const KERNEL: &str = "linux-image-cloud-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Modules that are not built into these kernels, in the order in which they are loaded.
const MODULES: [&str; 2] = ["dm-mod", "dm-log-writes"];
/// Says that a folder is complete.
const COMPLETE: &str = "complete";

/// A kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What it is asked for by.
    pub name: &'static str,
    /// Bootable.
    pub image: PathBuf,
    /// Its modules, uncompressed, in the order in which they are loaded.
    pub modules: Vec<(String, Vec<u8>)>,
}

/// The kernels, and the releases that they come from.
pub const KERNELS: [(&str, &str); 2] = [("6.1", RELEASE), ("6.12", BACKPORTS)];

/// QEMU, unpacked.
#[derive(Debug, Clone)]
pub struct Qemu {
    root: PathBuf,
}

impl Qemu {
    /// QEMU with the C library that it was built for, whatever this machine has.
    pub fn command(&self) -> Command {
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| self.root.join(dir));
        let path = std::env::join_paths(libraries).expect("the scratch folder has no colon in its path");
        let mut command = Command::new(self.root.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(path).arg(self.root.join("usr/bin/qemu-system-x86_64"));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.root.join(firmware));
        }
        command
    }
}

/// Brings what is not in `folder` yet. `say` hears what is done.
pub fn bring(folder: &Path, say: &dyn Fn(&str)) -> Result<(Qemu, Vec<Kernel>), String> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(format!("the guest is an x86-64 machine, and this one is {}", std::env::consts::ARCH));
    }
    missing_tools()?;
    let apt = Apt { folder: folder.join("apt") };
    let mut is_updated = false;
    let mut need = |name: &str, get: &dyn Fn(&Path) -> Result<(), String>| -> Result<PathBuf, String> {
        let root = folder.join(name);
        if root.join(COMPLETE).exists() {
            return Ok(root);
        }
        if !is_updated {
            say("asking the mirror for its packages");
            apt.update()?;
            is_updated = true;
        }
        say(&format!("bringing {name}"));
        let debs = folder.join(format!("{name}.debs"));
        for dir in [&root, &debs] {
            let _ = fs::remove_dir_all(dir);
            fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        }
        get(&debs)?;
        for deb in list(&debs)?.iter().filter(|path| path.extension() == Some(OsStr::new("deb"))) {
            output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&root))?;
        }
        fs::write(root.join(COMPLETE), "").map_err(|e| format!("{}: {e}", root.display()))?;
        let _ = fs::remove_dir_all(&debs);
        Ok(root)
    };
    let qemu = need("qemu", &|debs| apt.install(BACKPORTS, QEMU, debs))?;
    let mut kernels = Vec::new();
    for (name, release) in KERNELS {
        let root = need(&format!("kernel-{name}"), &|debs| apt.kernel(release, debs))?;
        kernels.push(kernel(name, &root)?);
    }
    Ok((Qemu { root: qemu }, kernels))
}

fn missing_tools() -> Result<(), String> {
    let is_missing = |tool: &&str| Command::new(tool).arg("--version").output().is_err();
    let missing: Vec<_> = TOOLS.into_iter().filter(|tool| is_missing(tool)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} is not installed: the guest is made of Debian's packages, so run this on Debian",
        missing.join(", ")
    ))
}

/// apt with sources, state and cache of its own, but the machine's proxies and keys.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join("apt.conf"));
        command
    }

    fn update(&self) -> Result<(), String> {
        let error = |e: std::io::Error| format!("{}: {e}", self.folder.display());
        let folder = std::path::absolute(&self.folder).map_err(error)?;
        for dir in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(dir)).map_err(error)?;
        }
        let (mirror, keyring) = mirror()?;
        let line = |release: &str| format!("deb [signed-by={keyring}] {mirror} {release} main\n");
        fs::write(folder.join("sources.list"), line(RELEASE) + &line(BACKPORTS)).map_err(error)?;
        // Nothing is installed as far as this apt knows, so that every dependency comes along.
        fs::write(folder.join("state/status"), "").map_err(error)?;
        let at = folder.display();
        let settings = [
            format!("Dir::Etc::SourceList \"{at}/sources.list\";"),
            "Dir::Etc::SourceParts \"/dev/null\";".to_owned(),
            "Dir::Etc::Preferences \"/dev/null\";".to_owned(),
            "Dir::Etc::PreferencesParts \"/dev/null\";".to_owned(),
            format!("Dir::State \"{at}/state\";"),
            format!("Dir::State::status \"{at}/state/status\";"),
            format!("Dir::Cache \"{at}/cache\";"),
            "APT::Sandbox::User \"root\";".to_owned(),
            "APT::Install-Recommends \"false\";".to_owned(),
            "APT::Architecture \"amd64\";".to_owned(),
        ];
        fs::write(folder.join("apt.conf"), settings.join("\n") + "\n").map_err(error)?;
        output(self.command("apt-get").args(["update", "--error-on=any"])).map(drop).map_err(|e| {
            format!(
                "the packages of {RELEASE} and {BACKPORTS} can't be reached by the mirror that apt is set up with: {e}"
            )
        })
    }

    /// Downloads a package and all that it depends on.
    fn install(&self, release: &str, package: &str, debs: &Path) -> Result<(), String> {
        let debs = std::path::absolute(debs).map_err(|e| format!("{}: {e}", debs.display()))?;
        fs::create_dir_all(debs.join("partial")).map_err(|e| format!("{}: {e}", debs.display()))?;
        let archives = format!("Dir::Cache::archives={}", debs.display());
        let arguments = ["install", "--download-only", "--yes", "-o", &archives, "-t", release, package];
        output(self.command("apt-get").args(arguments)).map(drop)
    }

    /// Downloads the present kernel of a release, without what it depends on.
    fn kernel(&self, release: &str, debs: &Path) -> Result<(), String> {
        // Lines such as `linux-image-cloud-amd64 | 6.1.176-1 | URI bookworm/main amd64 Packages`, the newest first.
        let versions = output(self.command("apt-cache").args(["madison", KERNEL]))?;
        let origin = format!(" {release}/main ");
        let version = versions.lines().find(|line| line.contains(&origin)).and_then(|line| line.split('|').nth(1));
        let version = version.ok_or_else(|| format!("{release} has no {KERNEL}"))?.trim().to_owned();
        let shown = output(self.command("apt-cache").arg("show").arg(format!("{KERNEL}={version}")))?;
        let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
        let package = depends.and_then(|depends| depends.split([' ', ',']).next());
        let package = package.ok_or_else(|| format!("{KERNEL} {version} depends on nothing"))?.to_owned();
        output(self.command("apt-get").arg("download").arg(package).current_dir(debs)).map(drop)
    }
}

/// The Debian mirror that apt is set up with, and the keyring for it.
fn mirror() -> Result<(String, String), String> {
    let format = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)";
    let targets = output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let fields = targets.lines().filter_map(|line| <[&str; 4]>::try_from(line.split('|').collect::<Vec<_>>()).ok());
    let mut found = fields.filter(|[uri, release, component, _]| {
        uri.trim_end_matches('/').ends_with("/debian") && !release.contains(['-', '/']) && *component == "main"
    });
    let [uri, _, _, keyring] = found.next().ok_or("apt is set up with no mirror of Debian: add one to its sources")?;
    // Older versions of apt do not know the field and leave it as it is.
    let keyring = if keyring.starts_with("/") { keyring } else { KEYRING };
    Ok((uri.to_owned(), keyring.to_owned()))
}

fn kernel(name: &'static str, root: &Path) -> Result<Kernel, String> {
    let find = |dir: PathBuf, prefix: &str| -> Result<PathBuf, String> {
        let has = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        let found = list(&dir)?.into_iter().find(has);
        found.ok_or_else(|| format!("{} has no {prefix}; remove {} and try again", dir.display(), root.display()))
    };
    let image = find(root.join("boot"), "vmlinuz-")?;
    let drivers = find(root.join("lib/modules"), "")?.join("kernel/drivers/md");
    let mut modules = Vec::new();
    for module in MODULES {
        let path = find(drivers.clone(), &format!("{module}.ko"))?;
        let content = if path.extension() == Some(OsStr::new("xz")) {
            bytes(Command::new("xz").args(["--decompress", "--stdout"]).arg(&path))?
        } else {
            fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?
        };
        modules.push((module.to_owned(), content));
    }
    Ok(Kernel { name, image, modules })
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

/// What a command prints; if it fails, the last line of its complaint.
pub(super) fn output(command: &mut Command) -> Result<String, String> {
    bytes(command).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn bytes(command: &mut Command) -> Result<Vec<u8>, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("cannot run {program}: {e}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = complaint.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    Err(format!("{program} ended with {}: {last}", output.status))
}
