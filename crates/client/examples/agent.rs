// A session that installs a package with nothing but its index in reach, and then runs code without any network.
//
//     cargo run -p cofferdam-client --example agent -- https://pypi.org/simple/ pypi.org requests

use std::error::Error;
use std::time::Duration;

use cofferdam_client::{NetworkMode, Session, lists};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    agent(std::env::args().skip(1).collect()).await
}

async fn agent(arguments: Vec<String>) -> Result<(), Box<dyn Error>> {
    let [index, host, package] = arguments.as_slice() else {
        return Err("give an index, its host and a package".into());
    };
    let session = Session::builder("example-agent")
        .network_mode(NetworkMode::Allowlist)
        .network_allowlist([host.as_str(), "*.pythonhosted.org"])
        .network_denylist([lists::CLOUD_METADATA_DENY])
        .create()
        .await?;

    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", "site"];
    let install = session.run("python3").args(pip).args(["--trusted-host", host, "--index-url", index, package]);
    let installed = install.workdir("/home/user").timeout(Duration::from_secs(300)).output().await?;
    println!("installed: {}", installed.success());

    // Whatever the package does: it has the files of the session, and no network at all.
    session.write("job.py", format!("import {package}; print('imported', {package}.__name__)")).await?;
    let job = session.run("python3").arg("job.py").workdir("/home/user").env("PYTHONPATH", "site");
    let job = job.network_mode(NetworkMode::Blocked).timeout(Duration::from_secs(60)).output().await?;
    print!("{}", job.stdout_text());

    // Another run, with less than the session and evidence of its own.
    let curl = session.run("curl").args(["--silent", "http://203.0.113.7/"]);
    let curl = curl.network_mode(NetworkMode::Allowlist).network_allowlist([host.as_str()]).output().await?;
    for denied in &curl.denied {
        println!("denied: {} by {}", denied.target, denied.rule);
    }

    session.remove().await?;
    Ok(())
}
