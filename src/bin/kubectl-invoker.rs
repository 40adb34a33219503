//! The kubectl plugin: parse, run.

use std::process::ExitCode;

use clap::FromArgMatches as _;
use run_invoker::cli::{self, Args};

fn main() -> ExitCode {
    let args = match cli::help::command()
        .try_get_matches()
        .and_then(|found| Args::from_arg_matches(&found))
    {
        Ok(args) => args,
        Err(e) => {
            // clap's own code for mistakes is 2, which means differences here.
            let code = u8::from(e.use_stderr());
            return if e.print().is_ok() {
                ExitCode::from(code)
            } else {
                ExitCode::from(1)
            };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::from(1);
        }
    };
    runtime.block_on(cli::run(args))
}
