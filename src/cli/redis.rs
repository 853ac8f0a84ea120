//! The flags of a Redis server. There are two sets of them, which differ in their names' beginning.

use std::path::PathBuf;

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use rustls::pki_types::ServerName;

use super::values::{boolean, number, secret};
use crate::{
    secret::Secret,
    store::{Access, Address, Login, Password, Place, Purpose, Sentinels, Tls, TlsError},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Network {
    Tcp,
    Unix,
}

// A doc comment on these structs would take the place of the program's own description.
macro_rules! redis_flags {
    ($name:ident, $side:literal, $variable:literal, $purpose:literal) => {
        #[derive(Debug, Args)]
        pub struct $name {
            #[arg(
                id = concat!($side, "-redis-network"),
                long = concat!($side, "-redis-network"),
                env = concat!("PLANB_", $variable, "_REDIS_NETWORK"),
                help = concat!("How to reach the Redis that ", $purpose),
                default_value = "tcp",
                value_name = "NETWORK"
            )]
            network: Network,

            #[arg(
                id = concat!($side, "-redis-host"),
                long = concat!($side, "-redis-host"),
                env = concat!("PLANB_", $variable, "_REDIS_HOST"),
                help = concat!("Host of the ", $side, " Redis; the socket's path for unix"),
                default_value = "127.0.0.1",
                value_name = "HOST"
            )]
            host: String,

            #[arg(
                id = concat!($side, "-redis-port"),
                long = concat!($side, "-redis-port"),
                env = concat!("PLANB_", $variable, "_REDIS_PORT"),
                help = concat!("Port of the ", $side, " Redis"),
                default_value_t = 6379,
                value_parser = number::<u16>,
                value_name = "PORT"
            )]
            port: u16,

            #[arg(
                id = concat!($side, "-redis-sentinel-addrs"),
                long = concat!($side, "-redis-sentinel-addrs"),
                env = concat!("PLANB_", $variable, "_REDIS_SENTINEL_ADDRS"),
                help = concat!(
                    "Sentinels that know where the ", $side, " Redis is, separated by commas; with them its network, host and \
                     port flags are ignored, and the others are those of the server that is found [default: none]"
                ),
                value_parser = addresses,
                value_name = "HOST:PORT,..."
            )]
            sentinel_addrs: Option<Addresses>,

            #[arg(
                id = concat!($side, "-redis-sentinel-name"),
                long = concat!($side, "-redis-sentinel-name"),
                env = concat!("PLANB_", $variable, "_REDIS_SENTINEL_NAME"),
                help = concat!("Name by which the sentinels know the master of the ", $side, " Redis [default: none]"),
                value_parser = NonEmptyStringValueParser::new(),
                value_name = "NAME"
            )]
            sentinel_name: Option<String>,

            #[arg(
                id = concat!($side, "-redis-sentinel-password"),
                long = concat!($side, "-redis-sentinel-password"),
                env = concat!("PLANB_", $variable, "_REDIS_SENTINEL_PASSWORD"),
                help = "Password of the sentinels themselves [default: none]",
                hide_env_values = true,
                value_parser = secret,
                value_name = "PASSWORD"
            )]
            sentinel_password: Option<Secret>,

            #[arg(
                id = concat!($side, "-redis-username"),
                long = concat!($side, "-redis-username"),
                env = concat!("PLANB_", $variable, "_REDIS_USERNAME"),
                help = concat!("User of the ", $side, " Redis' access list (ACL) [default: its default user]"),
                value_name = "NAME"
            )]
            username: Option<String>,

            #[arg(
                id = concat!($side, "-redis-password"),
                long = concat!($side, "-redis-password"),
                env = concat!("PLANB_", $variable, "_REDIS_PASSWORD"),
                help = concat!(
                    "Password of the ", $side,
                    " Redis; better in a file or the environment, since everybody can read command lines [default: none]"
                ),
                hide_env_values = true,
                value_parser = secret,
                value_name = "PASSWORD"
            )]
            password: Option<Secret>,

            #[arg(
                id = concat!($side, "-redis-password-file"),
                long = concat!($side, "-redis-password-file"),
                env = concat!("PLANB_", $variable, "_REDIS_PASSWORD_FILE"),
                help = concat!("File that holds the password of the ", $side, " Redis, read for each connection [default: none]"),
                value_name = "FILE"
            )]
            password_file: Option<PathBuf>,

            #[arg(
                id = concat!($side, "-redis-tls"),
                long = concat!($side, "-redis-tls"),
                env = concat!("PLANB_", $variable, "_REDIS_TLS"),
                help = concat!("Whether the ", $side, " Redis is spoken to over TLS; its certificate must be for its host"),
                num_args = 0..=1,
                default_value = "false",
                value_parser = boolean,
                action = clap::ArgAction::Set,
                value_name = "BOOL"
            )]
            tls: bool,

            #[arg(
                id = concat!($side, "-redis-tls-ca"),
                long = concat!($side, "-redis-tls-ca"),
                env = concat!("PLANB_", $variable, "_REDIS_TLS_CA"),
                help = concat!(
                    "PEM file of the authorities that may have signed the ", $side,
                    " Redis' certificate [default: the system's and Mozilla's]"
                ),
                value_name = "FILE"
            )]
            tls_ca: Option<PathBuf>,

            #[arg(
                id = concat!($side, "-redis-db"),
                long = concat!($side, "-redis-db"),
                env = concat!("PLANB_", $variable, "_REDIS_DB"),
                help = concat!("Database of the ", $side, " Redis"),
                default_value_t = 0,
                value_parser = number::<u8>,
                value_name = "NUMBER"
            )]
            db: u8,
        }

        impl $name {
            /// What makes no sense together.
            pub fn contradiction(&self) -> Option<&'static str> {
                match (&self.sentinel_addrs, &self.sentinel_name) {
                    (Some(_), None) => {
                        return Some(concat!(
                            "--", $side, "-redis-sentinel-addrs needs --", $side, "-redis-sentinel-name"
                        ));
                    }
                    (None, Some(_)) => {
                        return Some(concat!(
                            "--", $side, "-redis-sentinel-name needs --", $side, "-redis-sentinel-addrs"
                        ));
                    }
                    _ => {}
                }
                if is_given(self.password.as_ref()) && self.password_file.is_some() {
                    return Some(concat!(
                        "--", $side, "-redis-password and --", $side, "-redis-password-file are two passwords, but one is needed"
                    ));
                }
                if !self.tls {
                    let useless = concat!("--", $side, "-redis-tls-ca is of no use without --", $side, "-redis-tls");
                    return self.tls_ca.as_ref().map(|_| useless);
                }
                match self.network {
                    _ if self.sentinel_addrs.is_some() => None,
                    Network::Unix => Some(concat!("--", $side, "-redis-tls needs --", $side, "-redis-network tcp")),
                    Network::Tcp if ServerName::try_from(self.host.as_str()).is_err() => Some(concat!(
                        "--", $side, "-redis-host is no name that a certificate could be for, but there is --", $side, "-redis-tls"
                    )),
                    Network::Tcp => None,
                }
            }

            /// The server that the flags describe, or where to ask for it; `purpose` is what it is for.
            ///
            /// # Errors
            /// When the authorities' file is not usable.
            pub fn into_place(self, purpose: Purpose) -> Result<Place, TlsError> {
                let access = Access {
                    login: login(self.username, self.password, self.password_file),
                    tls: self.tls.then(|| Tls::new(self.tls_ca.as_deref())).transpose()?,
                    database: self.db,
                };
                if let (Some(addresses), Some(name)) = (self.sentinel_addrs, self.sentinel_name) {
                    let access_to_sentinels = Access { login: login(None, self.sentinel_password, None), tls: None, database: 0 };
                    let sentinels = addresses.0.iter().map(|address| access_to_sentinels.to(address)).collect();
                    return Ok(Place::Sentinel(Sentinels::new(sentinels, name, purpose, access)));
                }
                Ok(Place::At(access.to(&match self.network {
                    Network::Tcp => Address::Tcp(self.host, self.port),
                    Network::Unix => Address::Unix(PathBuf::from(self.host)),
                })))
            }
        }
    };
}

redis_flags!(ReadRedis, "read", "READ", "routes are read from");
redis_flags!(WriteRedis, "write", "WRITE", "dead backends are recorded on");

/// Where sentinels are. Never empty.
#[derive(Clone, Debug)]
struct Addresses(Vec<Address>);

/// Addresses that are looked up when they are connected to, so that names may come to mean others.
fn addresses(text: &str) -> Result<Addresses, String> {
    let address = |text: &str| {
        let (host, port) = text.trim().rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|&port| port != 0)?;
        (!host.is_empty() && !host.contains(char::is_whitespace)).then(|| Address::Tcp(host.to_owned(), port))
    };
    let parsed: Option<Vec<Address>> = text.split(',').map(address).collect();
    parsed.map(Addresses).ok_or_else(|| "it is not HOST:PORT, or several separated by commas".to_owned())
}

/// Empty variables of the environment are as good as none.
fn login(user: Option<String>, password: Option<Secret>, file: Option<PathBuf>) -> Login {
    let password = password.filter(|password| is_given(Some(password)));
    Login {
        user: user.filter(|user| !user.is_empty()),
        password: password.map(Password::Text).or(file.map(Password::File)),
    }
}

fn is_given(password: Option<&Secret>) -> bool {
    password.is_some_and(|password| !password.0.is_empty())
}
