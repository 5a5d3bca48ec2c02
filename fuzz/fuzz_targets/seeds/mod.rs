//! Inputs to begin with: `BANSET_SEEDS=DIRECTORY TARGET` writes them there, one file each, and ends.

use std::path::Path;

/// Writes the seeds of `target` where they are asked for.
pub fn write(target: &str, seeds: impl Iterator<Item = Vec<u8>>) {
    let Some(directory) = std::env::var_os("BANSET_SEEDS") else { return };
    let directory = Path::new(&directory);
    let told = std::fs::create_dir_all(directory).and_then(|()| {
        seeds.enumerate().try_for_each(|(i, seed)| std::fs::write(directory.join(format!("{target}-{i:04}")), seed))
    });
    match told {
        Ok(()) => std::process::exit(0),
        Err(e) => panic!("{}: {e}", directory.display()),
    }
}
