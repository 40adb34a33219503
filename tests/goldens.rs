//! Texts that people read. `INSTA_UPDATE=always cargo test --test goldens` writes them anew; the
//! diff is for review.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

use std::process::Command;

#[test]
fn the_help_names_every_flag_with_its_environment_variable_and_default() {
    let output = Command::new(env!("CARGO_BIN_EXE_run-invoker"))
        .arg("--help")
        .env("COLUMNS", "100")
        .env_remove("POD_NAME")
        .output()
        .unwrap();
    assert!(output.status.success());
    let mut lines: Vec<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|l| l.trim_end().to_owned())
        .collect();
    // The replica's name is this machine's and process's.
    let name = lines
        .iter()
        .position(|l| l.contains("[env: POD_NAME=]"))
        .unwrap();
    assert!(lines[name + 1].contains("[default: "));
    lines[name + 1] = "          [default: HOST-PID]".into();
    let text = lines.join("\n");
    insta::assert_snapshot!(text);
}

#[test]
fn what_cannot_be_meant_is_refused_with_the_name_of_the_flag() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_run-invoker"))
            .args(args)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, text) = run(&["--lease-duration", "3s", "--lease-renew", "2s"]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("--lease-renew 2s must be at most a third of --lease-duration 3s"),
        "{text}"
    );
    let (code, text) = run(&["--writes-per-minute", "0"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("--writes-per-minute"), "{text}");
    let (code, text) = run(&["--cloud-timeout", "soon"]);
    assert_eq!(code, Some(2));
    assert!(
        text.contains("is not a duration such as 10s or 5m"),
        "{text}"
    );
}
