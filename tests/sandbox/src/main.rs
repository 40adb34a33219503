//! Runs the sandbox until it is interrupted.
#![expect(clippy::print_stdout, reason = "says where it listens")]

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use sandbox::{Options, Sandbox};

/// A Kubernetes API and a Cloud Run Admin API in one process, for trying run-invoker out.
#[derive(Parser)]
struct Args {
    /// Address of the Kubernetes API.
    #[arg(long, default_value = "127.0.0.1:8001")]
    kube: SocketAddr,
    /// Address of the Cloud Run Admin API.
    #[arg(long, default_value = "127.0.0.1:8002")]
    run: SocketAddr,
    /// Address of the control API: faults, journal, services.
    #[arg(long, default_value = "127.0.0.1:8003")]
    control: SocketAddr,
    /// Where to write a kubeconfig.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let sandbox = Sandbox::start(Options {
        kube: args.kube,
        run: args.run,
        control: args.control,
    })
    .await?;
    if let Some(path) = &args.kubeconfig {
        std::fs::write(path, sandbox.kubeconfig())?;
    }
    println!("Kubernetes  {}", sandbox.kube_url());
    println!("Cloud Run   {}", sandbox.run_url());
    println!("Control     {}", sandbox.control_url());
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
