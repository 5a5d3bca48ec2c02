//! Arguments in, exit code out.

fn main() -> std::process::ExitCode {
    banset::cli::run()
}
