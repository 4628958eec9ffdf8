//! Which kernel modules a guest needs to reach its root, and in which order. Parsing and ordering are pure.
//!
//! The files are those of `depmod` (kmod, `modules.dep(5)`, `depmod(8)`).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::decompress;
use crate::error::{Error, Result};
use crate::tree::Tree;

/// Without these no guest boots.
const REQUIRED: [&str; 4] = ["virtio_pci", "virtio_blk", "erofs", "overlay"];
/// A guest with a root disk needs ext4; pvpanic (an ISA device, which pvpanic_mmio drives) tells the
/// engine of a kernel panic.
const OPTIONAL: [&str; 2] = ["ext4", "pvpanic_mmio"];

/// Fedora's largest such file, modules.alias, has 2 MiB; the largest module a few.
const MAX_LIST: u64 = 32 << 20;
const MAX_MODULE: u64 = 64 << 20;

/// A kernel module, unpacked.
pub(crate) struct Module {
    /// File name, for example `virtio_blk.ko`.
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// The modules to load, each after those it needs.
pub(crate) fn read(tree: Tree<'_>, version: &str) -> Result<Vec<Module>> {
    let directory = Path::new("lib/modules").join(version);
    let text = |name: &str| -> Result<Option<String>> {
        let bytes = tree.read(&directory.join(name), MAX_LIST)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    let no_modules = || Error::NoModules { version: version.to_owned() };
    let lists = Lists {
        dep: text("modules.dep")?.ok_or_else(no_modules)?,
        builtin: text("modules.builtin")?.unwrap_or_default(),
        softdep: text("modules.softdep")?.unwrap_or_default(),
        alias: text("modules.alias")?.unwrap_or_default(),
    };
    let missing = |module| Error::NoModule { version: version.to_owned(), module };
    let order = Index::parse(&lists).order().map_err(missing)?;
    order.into_iter().map(|path| module(tree, &directory.join(path))).collect()
}

fn module(tree: Tree<'_>, path: &Path) -> Result<Module> {
    let missing = || Error::Tree { path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() };
    let packed = tree.read(path, MAX_MODULE)?.ok_or_else(missing)?;
    let content = decompress::unpack(packed, path, MAX_MODULE)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(Module { name: decompress::unpacked_name(&name).to_owned(), content })
}

/// The texts of depmod's files.
struct Lists {
    dep: String,
    builtin: String,
    softdep: String,
    alias: String,
}

/// What the files say, by module name.
struct Index<'a> {
    /// File and the modules it needs.
    modules: HashMap<String, (&'a str, Vec<String>)>,
    builtin: HashSet<String>,
    /// Modules better loaded before, or aliases of such.
    softdeps: HashMap<String, Vec<String>>,
    aliases: HashMap<String, Vec<String>>,
}

impl<'a> Index<'a> {
    fn parse(lists: &'a Lists) -> Self {
        let mut index = Index {
            modules: HashMap::new(),
            builtin: lists.builtin.lines().map(module_name).collect(),
            softdeps: HashMap::new(),
            aliases: HashMap::new(),
        };
        for line in lists.dep.lines() {
            if let Some((file, needs)) = line.split_once(':') {
                let needs = needs.split_whitespace().map(module_name).collect();
                index.modules.insert(module_name(file), (file, needs));
            }
        }
        for line in lists.softdep.lines() {
            let mut words = line.split_whitespace();
            if let (Some("softdep"), Some(module)) = (words.next(), words.next()) {
                let before = words.skip_while(|&word| word != "pre:").skip(1).take_while(|&word| word != "post:");
                index.softdeps.entry(normal(module)).or_default().extend(before.map(normal));
            }
        }
        for line in lists.alias.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["alias", alias, module] = words[..] {
                index.aliases.entry(normal(alias)).or_default().push(normal(module));
            }
        }
        index
    }

    /// Files of the wanted modules and of all they need; or the first that is required and missing.
    fn order(&self) -> std::result::Result<Vec<PathBuf>, &'static str> {
        let missing = |name: &&&str| !self.modules.contains_key(**name) && !self.builtin.contains(**name);
        if let Some(name) = REQUIRED.iter().find(missing) {
            return Err(name);
        }
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        // Depth first, without recursion: the tree decides how deep. `true` when what it needs is in the list.
        let mut stack: Vec<(String, bool)> =
            REQUIRED.iter().chain(&OPTIONAL).rev().map(|&name| (name.to_owned(), false)).collect();
        while let Some((name, is_ready)) = stack.pop() {
            let Some((file, needs)) = self.modules.get(&name) else {
                continue;
            };
            if is_ready {
                order.push(PathBuf::from(file));
            } else if seen.insert(name.clone()) {
                stack.push((name.clone(), true));
                stack.extend(needs.iter().cloned().chain(self.soft(&name)).map(|need| (need, false)));
            }
        }
        Ok(order)
    }

    /// The modules better loaded before `name`.
    fn soft(&self, name: &str) -> impl Iterator<Item = String> {
        let wanted = self.softdeps.get(name).into_iter().flatten();
        wanted.flat_map(|want| {
            let providers = self.aliases.get(want).cloned().unwrap_or_default();
            providers.into_iter().chain([want.clone()])
        })
    }
}

/// The module's name of `kernel/fs/erofs/erofs.ko.xz`.
fn module_name(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    normal(file.split_once(".ko").map_or(file, |(name, _)| name))
}

/// In names of modules `-` and `_` are the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/block/virtio_blk.ko.xz:
kernel/fs/overlayfs/overlay.ko.xz:
kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz kernel/lib/lz4/lz4_decompress.ko.xz
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/libcrc32c.ko.xz
kernel/fs/jbd2/jbd2.ko.xz:
kernel/lib/libcrc32c.ko.xz:
kernel/lib/lz4/lz4_decompress.ko.xz:
kernel/arch/x86/crypto/crc32c-intel.ko.xz:
kernel/fs/xfs/xfs.ko.xz: kernel/lib/libcrc32c.ko.xz
";
    const BUILTIN: &str = "kernel/drivers/virtio/virtio_pci.ko\n";

    fn order(dep: &str, builtin: &str) -> std::result::Result<Vec<String>, &'static str> {
        let softdep = "# comment\nsoftdep libcrc32c pre: crc32c post: never\nsoftdep xfs pre: never\n";
        let alias = "alias crc32c crc32c_intel\nalias fs-ext4 ext4\n";
        let [dep, builtin, softdep, alias] = [dep, builtin, softdep, alias].map(str::to_owned);
        let lists = Lists { dep, builtin, softdep, alias };
        let order = Index::parse(&lists).order()?;
        Ok(order.iter().map(|path| module_name(&path.to_string_lossy())).collect())
    }

    #[test]
    fn everything_comes_after_what_it_needs_and_nothing_else_comes() {
        let order = order(DEP, BUILTIN).unwrap();
        let place = |name: &str| order.iter().position(|n| n == name).unwrap_or_else(|| panic!("{name} in {order:?}"));
        assert!(place("crc32c_intel") < place("libcrc32c"));
        assert!(place("libcrc32c") < place("erofs"));
        assert!(place("lz4_decompress") < place("erofs"));
        assert!(place("jbd2") < place("ext4"));
        assert_eq!(order.len(), 8, "{order:?}");
    }

    #[test]
    fn a_required_module_that_is_nowhere_is_named() {
        assert_eq!(order(DEP, ""), Err("virtio_pci"));
        assert_eq!(order("", &format!("{BUILTIN}virtio_blk.ko\nerofs.ko\n")), Err("overlay"));
    }

    #[test]
    fn a_circle_ends() {
        let circle = "a/virtio_blk.ko: a/erofs.ko\na/erofs.ko: a/virtio_blk.ko\na/overlay.ko: a/overlay.ko a/gone.ko\n";
        assert_eq!(order(circle, BUILTIN).unwrap(), ["erofs", "virtio_blk", "overlay"]);
    }
    proptest::proptest! {
        #[test]
        fn any_lists_give_an_order_without_repeats(dep in "([a-d/]{1,3}\\.ko: ?([a-d/ .]{0,9})\\n){0,20}", rest in "\\PC{0,80}") {
            let required = "virtio_pci.ko: a.ko\nvirtio_blk.ko: b.ko\nerofs.ko: c.ko\noverlay.ko: d.ko\n";
            let dep = format!("{dep}{required}");
            let lists = Lists { dep, builtin: rest.clone(), softdep: format!("softdep a pre: {rest}"), alias: rest };
            let order = Index::parse(&lists).order().unwrap();
            proptest::prop_assert!(order.len() >= REQUIRED.len());
            let unique: HashSet<_> = order.iter().collect();
            proptest::prop_assert_eq!(unique.len(), order.len());
        }
    }
}
