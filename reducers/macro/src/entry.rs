//! The two attributes.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Error, Expr, ExprLit, FnArg, Ident, ItemFn, Lit, LitInt, Meta, Pat, Result, ReturnType, Type};

/// A reducer's or parameter's longest name, as hosts accept it.
const NAME_LEN_MAX: usize = 64;

pub(crate) fn reducer(attr: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !attr.is_empty() {
        return Err(Error::new_spanned(
            attr,
            "#[reducer] takes no arguments; the function's name is the reducer's",
        ));
    }
    let (function, inputs) = parse(item, "reducer")?;
    let (name, const_name) = names(&function)?;
    let doc = doc(&function);

    let mut params = Vec::new();
    let mut takes = Vec::new();
    for (ident, ty) in &inputs {
        let key = checked_name(ident)?;
        params.push(quote_spanned!(ty.span()=> ::reducers::__private::ParamDef::of::<#ty>(#key)));
        takes.push(quote_spanned!(ty.span()=> args.next::<#ty>(#key)?));
    }
    let ident = &function.sig.ident;
    let args = if inputs.is_empty() { quote!(_args) } else { quote!(mut args) };
    let definition = quote! {
        ::reducers::__private::ReducerDef {
            name: #name,
            doc: #doc,
            params: &[#(#params),*],
            run: |ctx: &mut ::reducers::Ctx<'_>, #args: ::reducers::__private::Args| {
                #ident(ctx #(, #takes)*)
            },
        }
    };
    Ok(beside(&function, &const_name, quote!(::reducers::__private::ReducerDef), definition))
}

pub(crate) fn migration(attr: TokenStream, item: TokenStream) -> Result<TokenStream> {
    const USAGE: &str = "#[migration(N)] takes the schema version it leads to, from 1";
    if attr.is_empty() {
        return Err(Error::new(Span::call_site(), USAGE));
    }
    let literal: LitInt = syn::parse2(attr.clone()).map_err(|_| Error::new_spanned(&attr, USAGE))?;
    let version = literal.base10_parse::<u32>().ok().filter(|version| *version > 0);
    let version = version.ok_or_else(|| Error::new_spanned(&literal, USAGE))?;
    let (function, inputs) = parse(item, "migration")?;
    if let Some((ident, _)) = inputs.first() {
        return Err(Error::new_spanned(ident, "a migration takes `ctx: &mut Ctx` and nothing else"));
    }
    let (_, const_name) = names(&function)?;
    let ident = &function.sig.ident;
    let definition = quote! {
        ::reducers::__private::MigrationDef { version: #version, run: |ctx: &mut ::reducers::Ctx<'_>| #ident(ctx) }
    };
    Ok(beside(&function, &const_name, quote!(::reducers::__private::MigrationDef), definition))
}

/// The constant that describes `path`'s function, for `module!`.
pub(crate) fn const_ident(function: &Ident) -> Ident {
    format_ident!("{}_is_not_listed_in_reducers_module", function.unraw(), span = function.span())
}

/// The function and its constant.
fn beside(function: &ItemFn, name: &Ident, ty: TokenStream, definition: TokenStream) -> TokenStream {
    // The span is the function's, so that the error about an unlisted one points at it.
    let constant = quote_spanned! {function.sig.ident.span()=>
        #[doc(hidden)]
        #[allow(non_upper_case_globals)]
        #[deny(dead_code)]
        pub(crate) const #name: #ty = #definition;
    };
    quote! { #function #constant }
}

type Input = (Ident, Type);

/// Checks the parts that both kinds share; answers the parameters after `ctx`.
fn parse(item: TokenStream, kind: &str) -> Result<(ItemFn, Vec<Input>)> {
    let function: ItemFn = syn::parse2(item.clone())
        .map_err(|_| Error::new_spanned(&item, format!("#[{kind}] goes on a function")))?;
    let sig = &function.sig;
    if let Some(word) = &sig.asyncness {
        return Err(Error::new_spanned(
            word,
            format!("a {kind} is not async: calls to the host return at once"),
        ));
    }
    if let Some(word) = &sig.unsafety {
        return Err(Error::new_spanned(word, format!("a {kind} is not unsafe")));
    }
    if let Some(word) = &sig.abi {
        return Err(Error::new_spanned(
            word,
            format!("a {kind} is a plain function; the exports are made by module!"),
        ));
    }
    if !sig.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &sig.generics,
            format!("a {kind} cannot be generic: hosts call it by name"),
        ));
    }
    let first = format!("the first parameter of a {kind} is `ctx: &mut Ctx`");
    match sig.inputs.first() {
        Some(FnArg::Typed(ctx)) => match &*ctx.ty {
            Type::Reference(reference) if reference.mutability.is_some() => {}
            other => return Err(Error::new_spanned(other, first)),
        },
        Some(receiver @ FnArg::Receiver(_)) => return Err(Error::new_spanned(receiver, first)),
        None => return Err(Error::new_spanned(&sig.ident, first)),
    }
    if matches!(sig.output, ReturnType::Default) {
        return Err(Error::new_spanned(&sig.ident, format!("a {kind} returns `Result<(), Error>`")));
    }
    let mut inputs = Vec::new();
    for input in sig.inputs.iter().skip(1) {
        let FnArg::Typed(input) = input else {
            return Err(Error::new_spanned(input, format!("a {kind} is a function, not a method")));
        };
        let Pat::Ident(pat) = &*input.pat else {
            let text = "a parameter of a reducer is a plain name: it is the key of the arguments object";
            return Err(Error::new_spanned(&input.pat, text));
        };
        if let Type::Reference(reference) = &*input.ty {
            let text = "arguments are owned: use String for &str, Vec<u8> for &[u8]";
            return Err(Error::new_spanned(reference, text));
        }
        inputs.push((pat.ident.clone(), (*input.ty).clone()));
    }
    Ok((function, inputs))
}

fn names(function: &ItemFn) -> Result<(String, Ident)> {
    Ok((checked_name(&function.sig.ident)?, const_ident(&function.sig.ident)))
}

/// The identifier as hosts will see it: `[a-z_][a-z0-9_]*`.
fn checked_name(ident: &Ident) -> Result<String> {
    let name = ident.unraw().to_string();
    let well_formed = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if well_formed && name.len() <= NAME_LEN_MAX {
        return Ok(name);
    }
    let text = format!(
        "`{name}` must be lower-case ASCII letters, digits and `_`, at most {NAME_LEN_MAX}: it is a name in other languages too"
    );
    Err(Error::new_spanned(ident, text))
}

/// The first paragraph of the doc comment.
fn doc(function: &ItemFn) -> String {
    let mut lines: Vec<String> = Vec::new();
    for attr in function.attrs.iter().filter(|attr| attr.path().is_ident("doc")) {
        let Meta::NameValue(pair) = &attr.meta else { continue };
        let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &pair.value else { continue };
        for line in text.value().lines().map(str::trim) {
            if line.is_empty() && !lines.is_empty() {
                return lines.join("\n");
            }
            if !line.is_empty() {
                lines.push(line.to_owned());
            }
        }
        if text.value().trim().is_empty() && !lines.is_empty() {
            return lines.join("\n");
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(result: Result<TokenStream>) -> String {
        result.map(|tokens| tokens.to_string()).expect_err("the macro refuses").to_string()
    }

    /// What an author gets wrong is answered in words, not by an error inside of generated code.
    #[test]
    fn mistakes_are_explained() {
        for (source, text) in [
            (
                quote!(
                    struct A;
                ),
                "goes on a function",
            ),
            (
                quote!(
                    async fn a(ctx: &mut Ctx) -> Result<(), Error> {}
                ),
                "not async",
            ),
            (
                quote!(
                    unsafe fn a(ctx: &mut Ctx) -> Result<(), Error> {}
                ),
                "not unsafe",
            ),
            (
                quote!(
                    extern "C" fn a(ctx: &mut Ctx) -> Result<(), Error> {}
                ),
                "plain function",
            ),
            (
                quote!(
                    fn a<T>(ctx: &mut Ctx, t: T) -> Result<(), Error> {}
                ),
                "generic",
            ),
            (
                quote!(
                    fn a() -> Result<(), Error> {}
                ),
                "first parameter",
            ),
            (
                quote!(
                    fn a(ctx: Ctx) -> Result<(), Error> {}
                ),
                "first parameter",
            ),
            (
                quote!(
                    fn a(ctx: &Ctx) -> Result<(), Error> {}
                ),
                "first parameter",
            ),
            (
                quote!(
                    fn a(self) -> Result<(), Error> {}
                ),
                "first parameter",
            ),
            (
                quote!(
                    fn a(ctx: &mut Ctx) {}
                ),
                "returns `Result<(), Error>`",
            ),
            (
                quote!(
                    fn a(ctx: &mut Ctx, (x, y): (i64, i64)) -> Result<(), Error> {}
                ),
                "plain name",
            ),
            (
                quote!(
                    fn a(ctx: &mut Ctx, _: i64) -> Result<(), Error> {}
                ),
                "plain name",
            ),
            (
                quote!(
                    fn a(ctx: &mut Ctx, x: &str) -> Result<(), Error> {}
                ),
                "use String for &str",
            ),
            (
                quote!(
                    fn addTask(ctx: &mut Ctx) -> Result<(), Error> {}
                ),
                "lower-case",
            ),
            (
                quote!(
                    fn a(ctx: &mut Ctx, é: i64) -> Result<(), Error> {}
                ),
                "lower-case",
            ),
        ] {
            let found = error(reducer(TokenStream::new(), source.clone()));
            assert!(found.contains(text), "{source}: {found}");
        }
        let function = quote!(
            fn a(ctx: &mut Ctx) -> Result<(), Error> {}
        );
        assert!(error(reducer(quote!(name = "b"), function.clone())).contains("takes no arguments"));
        for attr in [quote!(), quote!(0), quote!(x), quote!(-1), quote!("1"), quote!(4294967296)] {
            let found = error(migration(attr.clone(), function.clone()));
            assert!(found.contains("from 1"), "{attr}: {found}");
        }
        let more = quote!(
            fn a(ctx: &mut Ctx, x: i64) -> Result<(), Error> {}
        );
        assert!(error(migration(quote!(1), more)).contains("nothing else"));
    }

    #[test]
    fn the_first_paragraph_is_the_description() {
        let function: ItemFn = syn::parse_quote! {
            /// One,
            ///   two.
            ///
            /// Three.
            fn a() {}
        };
        assert_eq!(doc(&function), "One,\ntwo.");
    }
}
