//! What the sandbox's `/etc` is made of: what of the host's is left out, and what is written anew.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use crate::SandboxSpec;

/// Entries of `/etc` that a sandbox does not see, relative to it, with the reason. A `*` at the end of a name stands
/// for any rest. Most are closed to ordinary users anyway; this list is for the hosts where they are not, and for
/// sandboxes that run as the owner of these files.
const HIDDEN: &[(&str, &str)] = &[
    ("shadow*", "password hashes"),
    ("gshadow*", "password hashes"),
    ("master.passwd", "password hashes"),
    ("security/opasswd", "old password hashes"),
    ("sudoers", "who may become root"),
    ("sudoers.d", "who may become root"),
    ("doas.conf", "who may become root"),
    ("subuid*", "names of the host's users"),
    ("subgid*", "names of the host's users"),
    ("machine-id", "identifies the host for ever"),
    ("machine-info", "names the host"),
    ("hostid", "identifies the host for ever"),
    ("mailname", "names the host"),
    ("ssh/ssh_host_*", "the host's ssh keys"),
    ("ssh/sshd_config.d", "how to get in"),
    ("dropbear", "the host's ssh keys"),
    ("ssl/private", "private keys"),
    ("pki/tls/private", "private keys"),
    ("pki/private", "private keys"),
    ("letsencrypt", "private keys"),
    ("acme", "private keys"),
    ("credstore*", "credentials of services"),
    ("cryptsetup-keys.d", "disk keys"),
    ("crypttab", "where the disk keys are"),
    ("fstab", "may hold passwords of network file systems"),
    ("krb5.keytab", "Kerberos keys"),
    ("samba", "may hold password hashes"),
    ("cifs*", "passwords of network file systems"),
    ("NetworkManager", "wireless and VPN passwords"),
    ("netplan", "wireless and VPN passwords"),
    ("wpa_supplicant*", "wireless passwords"),
    ("iwd", "wireless passwords"),
    ("systemd/network", "VPN keys"),
    ("wireguard", "VPN keys"),
    ("openvpn", "VPN keys"),
    ("ipsec*", "VPN keys"),
    ("swanctl", "VPN keys"),
    ("strongswan*", "VPN keys"),
    ("tailscale", "VPN keys"),
    ("zerotier-one", "VPN keys"),
    ("ppp", "passwords"),
    ("chatscripts", "passwords"),
    ("bluetooth", "pairing keys"),
    ("cloud", "may hold what a cloud gave the machine at its birth"),
    ("boto.cfg", "cloud credentials"),
    ("aws", "cloud credentials"),
    ("azure", "cloud credentials"),
    ("google*", "cloud credentials"),
    ("gcloud", "cloud credentials"),
    ("waagent.conf", "cloud agent"),
    ("docker", "registry credentials, TLS keys"),
    ("containers", "registry credentials"),
    ("containerd", "registry credentials"),
    ("buildkit", "registry credentials"),
    ("cni", "the host's networks"),
    ("crio", "registry credentials"),
    ("kubernetes", "cluster keys"),
    ("rancher", "cluster keys"),
    ("k0s", "cluster keys"),
    ("etcd", "cluster keys"),
    ("consul*", "cluster keys"),
    ("nomad*", "cluster keys"),
    ("vault*", "keys"),
    ("salt", "keys"),
    ("puppet*", "keys"),
    ("chef", "keys"),
    ("ansible/vault*", "keys"),
    ("gitlab*", "tokens"),
    ("buildkite-agent", "tokens"),
    ("teleport*", "tokens"),
    ("zabbix", "keys"),
    ("grafana", "passwords"),
    ("munin", "passwords"),
    ("nut", "passwords"),
    ("snmp", "community strings"),
    ("mysql/debian.cnf", "database passwords"),
    ("postgresql*", "database access"),
    ("redis", "passwords"),
    ("ldap.secret", "passwords"),
    ("*ldap*.conf", "passwords"),
    ("openldap/slapd*", "passwords"),
    ("sssd", "passwords"),
    ("freeradius", "passwords"),
    ("raddb", "passwords"),
    ("exim4/passwd*", "mail passwords"),
    ("postfix/sasl*", "mail passwords"),
    ("msmtprc", "mail passwords"),
    ("ssmtp", "mail passwords"),
    ("fetchmailrc", "mail passwords"),
    ("dovecot", "mail passwords"),
    ("bind/*.key", "name server keys"),
    ("rndc.key", "name server keys"),
    ("cups", "printer passwords"),
    ("iscsi", "storage passwords"),
    ("multipath", "storage"),
    ("ceph", "storage keys"),
    ("glusterfs", "storage keys"),
    ("rsyncd.secrets", "passwords"),
    ("davfs2", "passwords"),
    ("apt/auth.conf*", "passwords of package sources"),
    ("yum/pluginconf.d", "passwords of package sources"),
    ("rhsm", "subscription keys"),
    ("pki/consumer", "subscription keys"),
    ("pki/entitlement", "subscription keys"),
    ("brlapi.key", "key of the screen reader"),
    ("audit", "how the host watches"),
    ("environment.d", "may hold tokens"),
    ("environment", "may hold tokens and proxy passwords"),
    ("profile.d/*secret*", "tokens"),
    ("cron*", "the host's jobs"),
    ("anacrontab", "the host's jobs"),
    ("at.deny", "the host's jobs"),
    ("default/grub*", "may hold the boot password"),
    ("grub.d", "may hold the boot password"),
];

/// Entries of `/etc` that are written anew.
const WRITTEN: [&str; 5] = ["resolv.conf", "hosts", "hostname", "passwd", "group"];

/// Whether an entry directly in `/etc` is left out: hidden, or written anew.
pub(crate) fn is_left_out(name: &str) -> bool {
    // Editors and tools keep older versions next to these files.
    let base = name.trim_end_matches('-').trim_end_matches('~');
    WRITTEN.contains(&base) || HIDDEN.iter().any(|(pattern, _why)| !pattern.contains('/') && matches(pattern, name))
}

/// The patterns of hidden entries that lie deeper: directory in `/etc` and pattern of the name in it.
pub(crate) fn hidden_deeper() -> impl Iterator<Item = (&'static Path, &'static str)> {
    HIDDEN.iter().filter_map(|(pattern, _why)| {
        let (directory, name) = pattern.rsplit_once('/')?;
        Some((Path::new(directory), name))
    })
}

/// Whether a name fits a pattern in which each `*` stands for any run of characters.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(head) else { return false };
    rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| {
        // Patterns are ours and have two stars at most, so this ends soon.
        rest.get(at..).is_some_and(|rest| matches(tail, rest))
    })
}

/// The files that are written anew: name and content.
pub(crate) fn written(spec: &SandboxSpec) -> Vec<(&'static str, String)> {
    let (user, uid) = (if spec.inside_uid == 0 { "root" } else { "user" }, spec.inside_uid);
    let mut passwd = format!("{user}:x:{uid}:{uid}:{user}:/home/user:/bin/sh\n");
    let mut group = format!("{user}:x:{uid}:\n");
    if uid != 0 {
        passwd.push_str("root:x:0:0:root:/root:/bin/sh\n");
        group.push_str("root:x:0:\n");
    }
    // What ids that mean nothing inside are shown as (kernel.overflowuid).
    passwd.push_str("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n");
    group.push_str("nogroup:x:65534:\n");
    vec![
        ("resolv.conf", resolv_conf(&spec.resolv)),
        ("hosts", hosts(spec)),
        ("hostname", format!("{}\n", spec.name)),
        ("passwd", passwd),
        ("group", group),
    ]
}

fn resolv_conf(servers: &[IpAddr]) -> String {
    servers.iter().fold(String::new(), |mut text, server| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "nameserver {server}");
        text
    })
}

fn hosts(spec: &SandboxSpec) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    if !spec.hosts.iter().any(|(_, names)| names.contains(&spec.name)) {
        // Programs look up the name of their own machine; this is the address Debian gives it.
        let _ = writeln!(text, "127.0.1.1\t{}", spec.name);
    }
    for (address, names) in &spec.hosts {
        let _ = writeln!(text, "{address}\t{}", names.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_secrets_and_their_older_versions() {
        for name in ["shadow", "shadow-", "gshadow", "machine-id", "ipsec.secrets", "libnss-ldap.conf", "passwd-"] {
            assert!(is_left_out(name), "{name}");
        }
        for name in ["ssl", "nsswitch.conf", "services", "ld.so.cache", "alternatives", "ssh", "localtime"] {
            assert!(!is_left_out(name), "{name}");
        }
    }

    #[test]
    fn patterns_match_whole_names() {
        assert!(matches("ssh_host_*", "ssh_host_rsa_key"));
        assert!(matches("*ldap*.conf", "pam_ldap.conf"));
        assert!(!matches("shadow", "shadows"));
        assert!(!matches("ssh_host_*", "xssh_host_"));
        assert!(matches("a*", "a"));
    }

    #[test]
    fn every_reason_is_given_once() {
        let mut patterns: Vec<_> = HIDDEN.iter().map(|(pattern, _)| pattern).collect();
        patterns.sort_unstable();
        let before = patterns.len();
        patterns.dedup();
        assert_eq!(patterns.len(), before);
        assert!(HIDDEN.iter().all(|(pattern, why)| !why.is_empty() && !pattern.starts_with('/')));
    }

    #[test]
    fn name_servers_come_one_per_line() {
        let servers = ["172.16.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(resolv_conf(&servers), "nameserver 172.16.0.1\nnameserver fd00::1\n");
    }
}
