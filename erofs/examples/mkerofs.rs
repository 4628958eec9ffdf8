//! `mkerofs TREE IMAGE`: writes an image by hand.
use std::fs::File;
use std::os::fd::AsFd;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(tree), Some(image)) = (arguments.next(), arguments.next()) else {
        return Err("usage: mkerofs TREE IMAGE".into());
    };
    let tree = File::open(tree)?;
    let summary = vse_erofs::write(tree.as_fd(), &File::create_new(image)?, &vse_erofs::Options::default())?;
    println!("{summary:?}");
    Ok(())
}
