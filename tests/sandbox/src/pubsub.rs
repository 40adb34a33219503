//! Google's own Pub/Sub emulator, which the gcloud SDK brings: started, stopped, published to.
//!
//! Source: <https://docs.cloud.google.com/pubsub/docs/emulator>.

use std::{
    io,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// How long it may take to start; Java is slow on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running emulator with one topic and one subscription.
#[derive(Debug)]
pub struct Pubsub {
    program: PathBuf,
    child: Option<Child>,
    folder: PathBuf,
    port: u16,
}

impl Pubsub {
    pub const TOPIC: &'static str = "projects/acme-ops/topics/audit-events";
    pub const SUBSCRIPTION: &'static str = "projects/acme-ops/subscriptions/run-invoker";

    /// Where it is. The SDK is where `gcloud` is, which is not asked, because that takes seconds.
    pub fn program() -> Option<PathBuf> {
        let path = std::env::var_os("PATH")?;
        let gcloud = std::env::split_paths(&path)
            .map(|d| d.join("gcloud"))
            .find(|p| p.is_file());
        let gcloud = gcloud
            .and_then(|g| g.canonicalize().ok())
            .unwrap_or_default();
        let places = gcloud
            .ancestors()
            .map(|a| a.join("platform/pubsub-emulator/bin/cloud-pubsub-emulator"));
        let usual = PathBuf::from(
            "/usr/lib/google-cloud-sdk/platform/pubsub-emulator/bin/cloud-pubsub-emulator",
        );
        places.chain([usual]).find(|p| p.is_file())
    }

    /// Starts it on a free port. `None`: it is not installed.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start() -> io::Result<Option<Self>> {
        let Some(program) = Self::program() else {
            return Ok(None);
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let folder =
            std::env::temp_dir().join(format!("run-invoker-pubsub-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let mut this = Self {
            program,
            child: None,
            folder,
            port,
        };
        this.up().await?;
        Ok(Some(this))
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it, again on its port. What it knew is gone; the topic and the subscription are made
    /// again.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn up(&mut self) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        command
            .args(["--host=127.0.0.1", &format!("--port={}", self.port)])
            .current_dir(&self.folder);
        // Its script starts Java as a child, and both must go.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        self.child = Some(
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?,
        );
        let started = std::time::Instant::now();
        while let Err(why) = self.put(Self::TOPIC, &json!({})).await {
            if started.elapsed() > PATIENCE {
                return Err(io::Error::other(format!(
                    "the Pub/Sub emulator does not come up: {why}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.put(
            Self::SUBSCRIPTION,
            &json!({"topic": Self::TOPIC, "ackDeadlineSeconds": 10}),
        )
        .await
    }

    /// Kills it.
    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            Command::new("kill")
                .args(["-9", "--", &format!("-{}", child.id())])
                .status()
                .ok();
            child.wait().ok();
        }
    }

    async fn put(&self, name: &str, body: &Value) -> io::Result<()> {
        let url = format!("{}/v1/{name}", self.endpoint());
        answered(reqwest::Client::new().put(url).json(body).send().await).await
    }

    /// Publishes messages as anybody who may could.
    ///
    /// # Errors
    /// What it answers.
    pub async fn publish(&self, messages: &[Vec<u8>]) -> io::Result<()> {
        let url = format!("{}/v1/{}:publish", self.endpoint(), Self::TOPIC);
        for part in messages.chunks(500) {
            // A message that has neither data nor attributes is refused.
            let list: Vec<Value> = part
                .iter()
                .map(|m| json!({"data": STANDARD.encode(m), "attributes": {"from": "test"}}))
                .collect();
            answered(
                reqwest::Client::new()
                    .post(&url)
                    .json(&json!({"messages": list}))
                    .send()
                    .await,
            )
            .await?;
        }
        Ok(())
    }
}

async fn answered(result: reqwest::Result<reqwest::Response>) -> io::Result<()> {
    let answer = result.map_err(io::Error::other)?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(io::Error::other(answer.text().await.unwrap_or_default()))
}

impl Drop for Pubsub {
    fn drop(&mut self) {
        self.down();
        std::fs::remove_dir_all(&self.folder).ok();
    }
}
