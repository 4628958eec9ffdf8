//! The guest's initramfs: `vse-init` and kernel modules, as an uncompressed newc archive (Linux,
//! `Documentation/driver-api/early-userspace/buffer-format.rst`). A pure function of its parts.

use std::io::{self, Write};

use cpio::newc::{self, Builder, ModeFileType};

use crate::modules::Module;

/// `/init`; `/modules/order`, whose lines name the modules beside it in the order to load them; `/dev/console`, which
/// the kernel opens before `/init` can mount anything.
pub(crate) fn write(out: impl Write, init: &[u8], modules: &[Module]) -> io::Result<()> {
    let order: String = modules.iter().flat_map(|module| [module.name.as_str(), "\n"]).collect();
    let mut archive = Archive { out, entries: 0 };
    archive.add("dev", ModeFileType::Directory, 0o755, &[])?;
    archive.console()?;
    archive.add("init", ModeFileType::Regular, 0o755, init)?;
    archive.add("modules", ModeFileType::Directory, 0o755, &[])?;
    archive.add("modules/order", ModeFileType::Regular, 0o644, order.as_bytes())?;
    for module in modules {
        archive.add(&format!("modules/{}", module.name), ModeFileType::Regular, 0o644, &module.content)?;
    }
    newc::trailer(archive.out)?.flush()
}

struct Archive<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, name: &str, kind: ModeFileType, mode: u32, content: &[u8]) -> io::Result<()> {
        let entry = self.entry(name).mode(mode).set_mode_file_type(kind);
        self.put(entry, content)
    }

    fn console(&mut self) -> io::Result<()> {
        let entry = self.entry("dev/console").mode(0o600).set_mode_file_type(ModeFileType::Char);
        self.put(entry.rdev_major(5).rdev_minor(1), &[])
    }

    fn entry(&mut self, name: &str) -> Builder {
        self.entries += 1;
        Builder::new(name).ino(self.entries).nlink(1)
    }

    fn put(&mut self, entry: Builder, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let mut writer = entry.write(&mut self.out, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_its_parts_in_order() {
        let module = |name: &str| Module { name: name.to_owned(), content: name.as_bytes().to_vec() };
        let mut archive = Vec::new();
        write(&mut archive, b"program", &[module("b.ko"), module("a.ko")]).unwrap();

        let mut rest = archive.as_slice();
        let mut found = Vec::new();
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = Vec::new();
            rest = reader.to_writer(&mut content).unwrap();
            found.push((name, mode, String::from_utf8(content).unwrap()));
        }
        let expected = [
            ("dev", 0o40755, ""),
            ("dev/console", 0o20600, ""),
            ("init", 0o100755, "program"),
            ("modules", 0o40755, ""),
            ("modules/order", 0o100644, "b.ko\na.ko\n"),
            ("modules/b.ko", 0o100644, "b.ko"),
            ("modules/a.ko", 0o100644, "a.ko"),
        ];
        assert_eq!(found, expected.map(|(name, mode, content)| (name.to_owned(), mode, content.to_owned())));
    }
}
