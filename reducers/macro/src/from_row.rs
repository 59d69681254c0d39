//! `#[derive(FromRow)]`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, Result};

pub(crate) fn derive(input: TokenStream) -> Result<TokenStream> {
    let input: DeriveInput = syn::parse2(input)?;
    let usage = "FromRow is for structs with named fields: each is read from the column of its name";
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(&input.ident, usage));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new_spanned(&input.ident, usage));
    };
    let reads = fields.named.iter().filter_map(|field| field.ident.as_ref().map(|ident| (ident, &field.ty)));
    let reads = reads.map(|(ident, ty)| {
        let column = ident.unraw().to_string();
        quote_spanned!(ty.span()=> #ident: row.take_named::<#ty>(#column)?)
    });
    let ident = &input.ident;
    let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
    Ok(quote! {
        impl #impl_generics ::reducers::FromRow for #ident #ty_generics #where_clause {
            fn from_row(row: &mut ::reducers::Row<'_>) -> ::core::result::Result<Self, ::reducers::Error> {
                ::core::result::Result::Ok(Self { #(#reads),* })
            }
        }
    })
}
