//! `module!`.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Error, Ident, Path, Result, Token, bracketed};

use crate::entry::const_ident;

/// `migrations: [path, …], reducers: [path, …]`, each at most once, in either order.
struct List {
    migrations: Vec<Path>,
    reducers: Vec<Path>,
}

impl Parse for List {
    fn parse(input: ParseStream<'_>) -> Result<List> {
        const USAGE: &str = "expected `migrations: [function, …]` or `reducers: [function, …]`";
        let (mut migrations, mut reducers) = (None, None);
        while !input.is_empty() {
            let key: Ident = input.parse().map_err(|error| Error::new(error.span(), USAGE))?;
            let slot = match key.to_string().as_str() {
                "migrations" => &mut migrations,
                "reducers" => &mut reducers,
                _ => return Err(Error::new(key.span(), USAGE)),
            };
            if slot.is_some() {
                return Err(Error::new(key.span(), format!("`{key}` is listed twice")));
            }
            input.parse::<Token![:]>()?;
            let paths;
            bracketed!(paths in input);
            *slot = Some(Punctuated::<Path, Token![,]>::parse_terminated(&paths)?.into_iter().collect());
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        let Some(reducers) = reducers else {
            return Err(Error::new(
                Span::call_site(),
                "a module lists its reducers: `reducers: [function, …]`",
            ));
        };
        Ok(List { migrations: migrations.unwrap_or_default(), reducers })
    }
}

/// The path of the constant beside the function that `path` names.
fn constant(path: &Path) -> Path {
    let mut path = path.clone();
    if let Some(last) = path.segments.last_mut() {
        last.ident = const_ident(&last.ident);
    }
    path
}

pub(crate) fn module(input: TokenStream) -> Result<TokenStream> {
    let list: List = syn::parse2(input)?;
    let migrations = list.migrations.iter().map(constant);
    let reducers = list.reducers.iter().map(constant);
    Ok(quote! {
        /// This module: its migrations and reducers.
        pub static MODULE: ::reducers::Module = ::reducers::Module::new(&[#(#migrations),*], &[#(#reducers),*]);

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            #[unsafe(no_mangle)]
            extern "C" fn graft_abi_version() -> u32 {
                ::reducers::__private::guest::abi_version()
            }
            #[unsafe(no_mangle)]
            extern "C" fn graft_alloc(len: usize) -> *mut u8 {
                ::reducers::__private::guest::alloc(len)
            }
            #[unsafe(no_mangle)]
            extern "C" fn graft_describe() -> u64 {
                ::reducers::__private::guest::describe(&MODULE)
            }
            #[unsafe(no_mangle)]
            extern "C" fn graft_call(at: *const u8, len: usize) -> u64 {
                ::reducers::__private::guest::call(&MODULE, at, len)
            }
        };
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_explained() {
        for (source, text) in [
            (quote!(), "lists its reducers"),
            (quote!(migrations: [a]), "lists its reducers"),
            (quote!(a, b), "expected `migrations"),
            (quote!(reducer: [a]), "expected `migrations"),
            (quote!(reducers: [a], reducers: [b]), "listed twice"),
            (quote!(5), "expected `migrations"),
        ] {
            let found = module(source.clone()).map(|t| t.to_string()).expect_err("refused").to_string();
            assert!(found.contains(text), "{source}: {found}");
        }
    }

    #[test]
    fn the_constant_is_beside_the_function() {
        let path = constant(&syn::parse_quote!(crate::tasks::add_task));
        let expected: Path = syn::parse_quote!(crate::tasks::add_task_is_not_listed_in_reducers_module);
        assert_eq!(quote!(#path).to_string(), quote!(#expected).to_string());
    }
}
