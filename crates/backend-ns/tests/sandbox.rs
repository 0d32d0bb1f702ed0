fn main() {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let cwd = std::env::current_dir().unwrap();
    let spec = cofferdam_backend_ns::SandboxSpec {
        name: "sandbox".to_owned(),
        command: args,
        env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin:/root/.cargo/bin".into())],
        workdir: cwd.clone(),
        place: cofferdam_backend_ns::Place { project: Some(cwd), mounts: vec![], rootfs: None },
        inside_uid: 1000,
        capabilities: vec![],
        allow_userns: false,
        terminal: Default::default(),
        limits: Default::default(),
        hosts: vec![],
        resolv: vec![],
        network: None,
    };
    match cofferdam_backend_ns::launch(spec) {
        Ok(running) => println!("{:?}", running.run_to_end(&mut |_| {})),
        Err(error) => {
            println!("{error}: {:?} {}", std::error::Error::source(&error).map(|s| s.to_string()), error.exit_status());
        }
    }
}
