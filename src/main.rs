//! The `planb` executable.

use std::process::ExitCode;

use planb::{
    app,
    cli::{Cli, Command},
    demo,
    telemetry::Telemetry,
};

/// The system's own gives memory back to the kernel and takes it again all the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::from_process();
    let outcome = match cli.subcommand() {
        Some(Command::Demo) => demo::run(),
        None => Telemetry::init().and_then(|telemetry| {
            cli.warn_of_stray_words();
            app::run(cli.into_config()?, &telemetry, drop)
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("planb: {error:#}");
            ExitCode::FAILURE
        }
    }
}
